# The successor of its parent, by man/handover.7 alone. It serves until SIGTERM. If it is handed something that it
# does not know, such as a state, it fails.
import itertools, os, select, signal, socket, sys, threading
import hello


def take_moved(moving):
    left = []
    while (message := socket.recv_fds(moving, 8192, 1))[0] not in (b"", b"kept"):
        connections = [socket.socket(fileno=number) for number in message[1]]
        word, number, line = (message[0].split(b" ", 2) + [b"", b""])[:3]
        if word == b"move":
            can_serve = connections and line.startswith((b"used ", b"new "))
            try:
                moving.send((b"took " if can_serve else b"refused ") + number)
                [hello.serve(connection) for connection in connections if can_serve]
            except BrokenPipeError:
                left += connections
    if message[0] == b"":
        # The sender has died, and does not serve them.
        [hello.serve(connection) for connection in left]


def succeed(link, greeting, listening, moving, above):
    first, *lines = greeting.decode().splitlines()
    is_known = all(line == "above" or line.startswith("file ") for line in lines)
    if first != "handover 1" or not is_known or lines.count("above") != len(above):
        link.send(b"failed not all that is handed over is known\n")
        sys.exit(1)
    link.settimeout(60)
    link.send(b"ready\n")
    word = link.makefile("rb").readline()
    if word and not word.startswith(b"go "):
        sys.exit(word)
    for other in above:
        other.settimeout(60)
        try:
            other.send(b"handed over\n")
        except BrokenPipeError:
            if any(word.startswith(b"no ") for word in other.makefile("rb")):
                sys.exit("another process serves")

    def stop(*_):
        try:
            link.send(b"stopping\n")
        finally:
            os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    threading.Thread(target=take_moved, args=[moving], daemon=True).start()
    link.send(b"serving\n")
    while True:
        for each in select.select(listening, [], [])[0]:
            try:
                hello.serve(each.accept()[0])
            except BlockingIOError:
                pass


def handed():
    for number in itertools.count(3):
        try:
            yield socket.socket(fileno=number)
        except OSError:
            return


def is_listening(each):
    return each.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


if __name__ == "__main__":
    sockets = list(handed())
    listening = list(itertools.takewhile(is_listening, sockets))
    link, moving, *above = sockets[len(listening) :]
    succeed(link, link.recv(16384, socket.MSG_DONTWAIT), listening, moving, above)
