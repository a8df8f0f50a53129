"""Later: a module that is imported when it is first used, so that a command's --help needs none of it."""

import importlib


class Later:
    """Stands for a module: `fitting = Later("covkeras.experiments.fitting")`, then `fitting.train(...)`."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str):
        return getattr(importlib.import_module(self._name), attribute)
