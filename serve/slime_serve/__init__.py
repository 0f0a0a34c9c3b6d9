"""Starting, watching and stopping a Triton server on a model repository. Knows nothing of training or export."""

from slime_serve.errors import ServeError, ServerError, Stopped, UsageError
from slime_serve.security import Security
from slime_serve.server import Server
from slime_serve.settings import ServerSettings

__all__ = ["Security", "ServeError", "Server", "ServerError", "ServerSettings", "Stopped", "UsageError"]
