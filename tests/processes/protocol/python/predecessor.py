# The predecessor of any program, by man/handover.7 alone. Its arguments are the program, with those that it gets
# beside the address. It answers one request, and moves the connection.
import fcntl, os, signal, socket, sys
import hello

listener = socket.create_server(("127.0.0.1", 0))
address = "%s:%d" % listener.getsockname()
print(f"listening on {address}\nprocess {os.getpid()} is ready, in Python", file=sys.stderr)
connection, client = listener.accept()
hello.answer(connection)

link, its_link = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
moving, its_moving = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
link.sendall(b"handover 1\n")
# Above the numbers that the child finds them under.
handed = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 6) for each in (listener, its_link, its_moving)]
place = [(os.POSIX_SPAWN_DUP2, each, 3 + index) for index, each in enumerate(handed)]
environment = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
program = sys.argv[1:] + ["--listen", address]
child = os.posix_spawnp(program[0], program, environment | {"HANDOVER": "1"}, file_actions=place)
[os.close(each) for each in handed]
its_link.close()
its_moving.close()

words, ready = link.makefile("rb"), None
link.settimeout(10)
try:
    ready = words.readline()
    if ready == b"ready\n":
        link.sendall(b"go 2\n")
except OSError:
    ready = None
if ready != b"ready\n":
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    # A server would serve on now.
    sys.exit(f"the successor has said {ready}")
serving = words.readline()

line = "move 1 used 0 %s:%d %s" % (*client, address)
socket.send_fds(moving, [line.encode()], [connection.fileno()])
moving.settimeout(5)
if (answer := moving.recv(8192)) != b"took 1":
    # A server would serve the connection on now.
    sys.exit(f"the successor has answered {answer}")
connection.close()

# The last look at the successor, from which on it cannot say anything.
link.shutdown(socket.SHUT_RD)
if serving != b"serving\n" or os.waitpid(child, os.WNOHANG) != (0, 0):
    sys.exit("a server would accept again now")
