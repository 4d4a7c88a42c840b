"""Serves a folder over HTTP on both families until stdin ends: so it never outlives the test that started it."""
import http.server
import os
import socket
import sys
import threading

folder, port = sys.argv[1], int(sys.argv[2])


class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 128

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        return super().server_bind()


class Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args):
        super().__init__(*args, directory=folder)


server = Server(("::", port), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
os._exit(0)
