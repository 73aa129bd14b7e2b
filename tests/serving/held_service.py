"""A program: a service whose model waits for a line on standard input. Arguments: seconds of grace."""

import sys

from electra_fast.serving.app import Limits, create_app
from electra_fast.serving.batcher import Batcher
from electra_fast.serving.metrics import Metrics
from electra_fast.serving.server import Server, listen, url_of
from tests.serving.small import PATIENCE, Echo

echo, metrics, batcher = Echo(), Metrics(), Batcher()
echo.go.clear()
listener = listen("127.0.0.1", 0)
app = create_app([echo], batcher, metrics, name="held", limits=Limits(timeout=PATIENCE))


def ready() -> None:
    print(url_of(listener), flush=True)


server = Server(app, timeout=PATIENCE, grace=float(sys.argv[1]), on_ready=ready)
if sys.argv[2:] != ["stuck"]:
    import threading

    threading.Thread(target=lambda: (sys.stdin.readline(), echo.go.set()), daemon=True).start()
server.run([listener])
print("ended", batcher.stop(0 if sys.argv[2:] else PATIENCE), flush=True)
