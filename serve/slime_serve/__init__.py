"""Starting, watching and stopping a Triton server on a model repository. Knows nothing of training or export."""

from slime_serve.errors import ServeError, ServerFailed, UsageError
from slime_serve.server import Server, ServerSettings

__all__ = ["ServeError", "Server", "ServerFailed", "ServerSettings", "UsageError"]
