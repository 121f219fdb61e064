# As little HTTP as does: each request has no body, and is answered with the process ID.
import os, socket, threading


def answer(connection):
    request = b""
    while not request.endswith(b"\r\n\r\n"):
        if not (piece := connection.recv(4096)):
            return False
        request += piece
    body = b"Hello from %d!" % os.getpid()
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    return True


def serve(connection):
    # With a time-out, Python waits with poll(2), whatever the socket has been set to.
    connection.settimeout(60)

    def answer_all():
        with connection:
            while answer(connection):
                pass

    threading.Thread(target=answer_all, daemon=True).start()
