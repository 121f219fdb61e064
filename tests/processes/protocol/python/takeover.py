"""A successor that takes over from the process at the control socket in its argument."""
import os, socket, struct, sys
from successor import succeed
from wire import End

link = End(socket.AF_UNIX)
link.connect(sys.argv[1])
_, user, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
if user not in (0, os.getuid()) or not link.say("takeover") or (answer := link.hear(seconds=5)) != "handover 1":
    sys.exit(f"it cannot take over from a process of user {user}: {answer}")
if link.flags & socket.MSG_CTRUNC:
    sys.exit("not all descriptors have come")
ends = [End(fileno=number) for number in link.descriptors]
count = [end.type for end in ends].index(socket.SOCK_SEQPACKET)
succeed(ends[:count], link, ends[count], (end.fileno() for end in ends[count + 1 :]))
