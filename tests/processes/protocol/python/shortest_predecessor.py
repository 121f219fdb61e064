"""The shortest predecessor, which moves nothing: on SIGUSR2 the program in its arguments takes its place."""
import contextlib, fcntl, os, select, signal, socket, sys

listener = socket.create_server(("127.0.0.1", 0))
listener.setblocking(False)
asked, wakeup = socket.socketpair()
wakeup.setblocking(False)
signal.set_wakeup_fd(wakeup.fileno())
signal.signal(signal.SIGUSR2, lambda *_: None)
print(f"listening on 127.0.0.1:{listener.getsockname()[1]}\nprocess {os.getpid()} is ready, in Python", file=sys.stderr)


def serve_until(other):
    while True:
        for each in select.select([listener, other], [], [])[0]:
            with contextlib.suppress(BlockingIOError, ConnectionResetError):  # neither is the end of anything
                if each is other:
                    return each.recv(16384)
                with each.accept()[0] as client:
                    client.recv(65536)
                    body = b"Hello from %d!" % os.getpid()
                    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
                    client.sendall(head + body)


while serve_until(asked):
    (link, its_link), (moves, its_moves) = socket.socketpair(), socket.socketpair(type=socket.SOCK_SEQPACKET)
    link.sendall(b"handover 1\n")
    handed = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, 10) for each in (listener, its_link, its_moves)]
    places = [(os.POSIX_SPAWN_DUP2, each, 3 + index) for index, each in enumerate(handed)]
    child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ | {"HANDOVER": "1"}, file_actions=places)
    its_link.close(), its_moves.close(), [os.close(each) for each in handed]
    if serve_until(link) == b"ready\n":
        with contextlib.suppress(BrokenPipeError):
            link.sendall(b"go 2\n")
        if serve_until(link) == b"serving\n":
            break  # no connection is open, and nothing is left to be done
    else:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
