"""What both sides need: words, and an HTTP server on one thread, which answers with its process ID."""
import contextlib, os, select, signal, socket, time

AT_ONCE = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
OPTIONS = os.environ.get("OPTIONS", "").split()
listeners, clients = [], {}
closing = False


def log(text):
    os.write(2, f"{text}\n".encode())


class End(socket.socket):
    """An end of a link, where a word is a line, or of the socket for moving, where it is a message."""

    def say(self, word, *descriptors, end="\n"):
        """Whether it could be said."""
        for end_of_it, number in ("dies", signal.SIGKILL), ("stops", signal.SIGSTOP):
            if f"{end_of_it}-before-{word.split(' ')[0]}" in OPTIONS:
                os.kill(os.getpid(), number)
        try:
            return socket.send_fds(self, [(word + end).encode()], descriptors, AT_ONCE) == len(word + end)
        except OSError:
            return False

    def hear(self, *others, seconds=3600):
        """The next word, empty at the end; None if another file can be read, or nothing has come in time."""
        if until(*others, self, seconds=seconds) is not self:
            return None
        try:
            word = self.recv(8192, AT_ONCE | socket.MSG_PEEK).partition(b"\n")[0]
            _, self.descriptors, self.flags, _ = socket.recv_fds(self, len(word) + 1, 253, AT_ONCE)
            return word.decode()
        except ConnectionResetError:  # the other process is no more and has not heard all; its last words follow
            return self.hear()


def until(*files, seconds=3600, drained=False):
    """Serves until a file can be read, which is returned, or no client is left, or for some seconds."""
    end = time.monotonic() + seconds
    while not (drained and not clients):
        left = max(0, end - time.monotonic())
        for each in select.select([*files, *listeners, *clients], [], [], left)[0]:
            if each in files:
                return each
            if each in clients:
                answer(each)
            else:
                accept(each)
        if not left:
            break


def accept(listener):
    with contextlib.suppress(BlockingIOError):  # perhaps because another process has been faster
        while True:
            client, address = listener.accept()
            add_client(client, "%s:%d %s:%d" % (*address, *listener.getsockname()))


def add_client(client, ends, used="new", waited=0):
    client.settimeout(20)  # it waits with poll(2), whatever the socket has been set to
    clients[client] = used, time.monotonic() - waited, ends


def answer(client):
    """Answers a request. It takes no more from the socket than that, so the connection can be moved then."""
    head, last = b"", True
    with contextlib.suppress(OSError):
        while not head.endswith(b"\r\n\r\n") and (byte := client.recv(1)):
            head += byte
        if byte:
            last = closing or b"\r\nconnection: close" in head.lower()
            end, body = b"Connection: close\r\n" * last, b"Hello from %d!" % os.getpid()
            client.sendall(b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s" % (end, len(body), body))
            clients[client] = "used", time.monotonic(), clients[client][2]
    if last:
        del clients[client]
        client.close()


def signals(*numbers):
    """A socket on which each of these signals is a byte."""
    heard, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    signal.set_wakeup_fd(wakeup.detach())
    for number in numbers:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return heard
