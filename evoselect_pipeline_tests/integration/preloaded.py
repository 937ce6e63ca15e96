"""What a fork server imports once for all runs: everything that takes long and survives a fork.

Not Lance, Polars and what imports them: their threads would be missing in a fork.
"""

import alembic
import dagster
import matplotlib.pyplot
import peft
import sklearn
from transformers import Trainer

from evoselect_pipeline.cli import main

__all__ = ["Trainer", "alembic", "dagster", "main", "matplotlib", "peft", "sklearn"]
