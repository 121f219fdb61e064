"""The shortest successor: it takes each connection that is moved to it, and serves until it is killed."""
import os, select, socket, sys, threading


def serve(client):
    client.settimeout(3600)  # so that it waits with poll(2), whatever the socket has been set to
    while client.recv(65536):
        body = b"Hello from %d!" % os.getpid()
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    client.close()


listeners, descriptor = [], 3
while (link := socket.socket(fileno=descriptor)).getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
    listeners, descriptor = [*listeners, link], descriptor + 1
if link.recv(16384, socket.MSG_DONTWAIT) != b"handover 1\n":
    sys.exit("it does not know what else is handed on")
link.sendall(b"ready\n")
if link.recv(16384).split(b" ")[0] not in (b"go", b""):
    sys.exit("it is not to go")
link.sendall(b"serving\n", socket.MSG_NOSIGNAL)
moves = socket.socket(fileno=descriptor + 1)
while True:
    for each in select.select([*listeners, *([moves] if moves else [])], [], [])[0]:
        if each in listeners:
            try:
                threading.Thread(target=serve, args=[each.accept()[0]]).start()
            except BlockingIOError:
                pass  # another process has been faster
        else:
            message, connection, flags, _ = socket.recv_fds(moves, 8192, 1)
            if message.startswith(b"move ") and connection and flags & ~socket.MSG_CMSG_CLOEXEC == 0:
                moves.sendall(b"took " + message.split(b" ")[1])
                threading.Thread(target=serve, args=[socket.socket(fileno=connection[0])]).start()
            moves = moves if message else None
