"""Starts its arguments as systemd's socket activation does: the address of the only listener in the file that follows
`--config` is bound here and handed over as descriptor 3. Nobody else can bind it then."""
import os
import re
import socket
import sys

config = open(sys.argv[sys.argv.index("--config") + 1]).read()
host, port = re.search(r'^address = "([0-9.]+):([0-9]+)"', config, re.M).groups()
listener = socket.socket()
listener.bind((host, int(port)))
listener.listen(64)
if listener.fileno() == 3:
    os.set_inheritable(3, True)
else:
    os.dup2(listener.fileno(), 3, inheritable=True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[1], sys.argv[1:])
