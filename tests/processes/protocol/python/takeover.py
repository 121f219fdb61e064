# The successor of the process that serves the control socket in its argument, by man/handover.7 alone.
import itertools, socket, sys
import successor

link = socket.socket(socket.AF_UNIX)
link.settimeout(5)
link.connect(sys.argv[1])
link.send(b"takeover\n")
greeting, numbers, flags, _ = socket.recv_fds(link, 16384, 253)
if flags & socket.MSG_CTRUNC or not numbers:
    sys.exit(greeting)
sockets = [socket.socket(fileno=number) for number in numbers]
listening = list(itertools.takewhile(successor.is_listening, sockets))
moving, *above = sockets[len(listening) :]
successor.succeed(link, greeting, listening, moving, above)
