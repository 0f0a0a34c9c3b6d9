"""What can go wrong while a segmenter is exported, told in one line each.

    ExportError (ValueError)      input that cannot be exported or published; a RepositoryError, as what is wrong with
                                  a model repository is
    ParityError (RuntimeError)    the exported models do not answer as PyTorch does
    QualityError (RuntimeError)   the segmenter is not good enough to take the place of the one that serves
    ServerError (RuntimeError)    the running server refused, or answered wrongly
    EngineError (RuntimeError)    TensorRT refused the graph, or found no GPU
    BusyError (RuntimeError)      another process went on changing the repository

Entry scripts print the line and leave with exit code 2 for RepositoryError, which the first is, and 1 for the others.
"""

from slime_repository.errors import RepositoryError


class ExportError(RepositoryError):
    """One line: the subject, what was found, what was expected, what to do next."""


class ParityError(RuntimeError):
    """The ONNX models differ from PyTorch by more than the tolerance; nothing was published."""


class QualityError(RuntimeError):
    """The segmenter finds too little on annotated images, or on its own training images; nothing was published."""


class ServerError(RuntimeError):
    """The running server could not be asked, or did not take the new version; the old one still serves."""


class EngineError(RuntimeError):
    """TensorRT is there but built no engine, or could not run it; nothing was published."""


class BusyError(RuntimeError):
    """The repository's lock was not free in time; nothing was changed."""
