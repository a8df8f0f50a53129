"""Export: the smoothed classifier, with Monte Carlo certification in the graph, as a SavedModel for TF-Serving."""

from covkeras.exporting.saved_model import Defaults, export

__all__ = ["Defaults", "export"]
