// net/http, replaced in the usual way: SIGUSR2 starts the program again with the listening socket as
// descriptor 3, and the new process tells the old one to call Shutdown.
package main

import (
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

const inherited = "INHERITED=1"

func main() {
	address, body, pidFile := os.Args[1], []byte(os.Args[2]), os.Args[3]
	isSuccessor := os.Getenv("INHERITED") != ""
	listener := listen(address, isSuccessor)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR2, syscall.SIGTERM)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { w.Write(body) })
	server := &http.Server{}
	check(os.WriteFile(pidFile, []byte(strconv.Itoa(os.Getpid())), 0o600))
	go server.Serve(listener)
	if isSuccessor {
		check(syscall.Kill(os.Getppid(), syscall.SIGTERM))
	}
	for <-signals == syscall.SIGUSR2 {
		startSuccessor(listener)
	}
	deadline, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	server.Shutdown(deadline)
}

func listen(address string, isSuccessor bool) net.Listener {
	listener, err := net.Listener(nil), error(nil)
	if isSuccessor {
		listener, err = net.FileListener(os.NewFile(3, address))
	} else {
		listener, err = net.Listen("tcp", address)
	}
	check(err)
	return listener
}

func startSuccessor(listener net.Listener) {
	socket, err := listener.(*net.TCPListener).File()
	check(err)
	defer socket.Close()
	command := exec.Command(os.Args[0], os.Args[1:]...)
	command.Env = append(os.Environ(), inherited)
	command.ExtraFiles = []*os.File{socket}
	check(command.Start())
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
