"""The one entry for Dagster: everything in `defs/`, and the lines in `EVOSELECT_LINES`."""

from pathlib import Path

import dagster as dg

from evoselect_pipeline.components.evolution_line import line_definitions
from evoselect_pipeline.config_file import load_config, own_line_files


@dg.definitions
def defs() -> dg.Definitions:
    """Load the lines and resources that the `defs` folder describes, and the user's own lines."""
    packaged = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    own = (line_definitions(load_config(file)) for file in own_line_files())
    return dg.Definitions.merge(packaged, *own)
