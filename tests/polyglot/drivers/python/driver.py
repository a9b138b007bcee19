"""The conformance suite's driver: does what it is told with the client for threads, or with `--aio` that for asyncio."""

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

if __name__ == "__main__":
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("credentialbroker").setLevel(logging.INFO)
    if "--aio" in sys.argv[1:]:
        from with_tasks import run
    else:
        from with_threads import run
    run()
