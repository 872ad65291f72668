"""The processes that hold the models. The only room that imports Ray."""

import os

# Ray reads these once, when it is imported. A cluster that never leaves this machine listens on loopback alone. The
# variable is named after the systems where that is the default.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
# And never starts another cluster because somebody asks after a call when ours has ended.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
# A failure is told once, by us: Ray would print it again for every call that it cuts short, to both streams.
os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed while executing a task")
