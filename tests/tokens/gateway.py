"""A real node whose attestations live for seconds: it needs its token all the time.

python -m tests.tokens.gateway SECONDS --home H --name N ...     the rest as edge.node.service"""

import sys

from edge.node import clock, service

if __name__ == "__main__":
    clock.SHORT = int(sys.argv[1])
    sys.exit(service.main(sys.argv[2:]))
