"""Starting, watching and stopping a Triton server on a model repository. Knows nothing of training or export."""

from slime_serve.server import Server
from slime_serve.settings import Security, ServeError, ServerError, ServerSettings, Stopped, UsageError

__all__ = ["Security", "ServeError", "Server", "ServerError", "ServerSettings", "Stopped", "UsageError"]
