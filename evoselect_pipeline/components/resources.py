"""The resource that every asset needs: the home folder."""

from functools import cache
from pathlib import Path

import dagster as dg

from evoselect_pipeline.stores.home import Home


class HomeResource(dg.ConfigurableResource):
    """Where all state lives: a folder, or `EVOSELECT_HOME` if none is given."""

    root: str = ""

    def home(self) -> Home:
        """The home, with its folders and databases in place."""
        return _initialised(Home(Path(self.root)) if self.root else Home.from_env())


@cache
def _initialised(home: Home) -> Home:
    return home.init()
