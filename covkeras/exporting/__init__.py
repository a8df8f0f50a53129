"""Export: the smoothed classifier, with Monte Carlo certification in the graph, as a SavedModel for TF-Serving.

saved_model   its signatures, metadata, files
graphs        what each signature computes
warmup        the requests a server runs when it loads it
"""

from covkeras.exporting.saved_model import Defaults, export

__all__ = ["Defaults", "export"]
