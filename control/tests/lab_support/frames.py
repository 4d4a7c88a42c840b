"""Frames made by hand: what a pod with raw sockets can do. Both families, UDP, with a mark to be known by.

send INTERFACE MAC,MAC,... SRC DST   sends each frame to each MAC
count INTERFACE SECONDS              prints how many marked frames came in
"""
import ipaddress
import socket
import struct
import sys
import time

MARK = b"made by hand"


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF or 0xFFFF


def packet(src, dst):
    src, dst = ipaddress.ip_address(src), ipaddress.ip_address(dst)
    udp = struct.pack("!HHHH", 40000, 8080, 8 + len(MARK), 0) + MARK
    pseudo = src.packed + dst.packed + struct.pack("!IHBB", len(udp), 0, 0, 17)
    udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp)) + udp[8:]
    if src.version == 6:
        return b"\x86\xdd", struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + src.packed + dst.packed + udp
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 7, 0, 64, 17, 0) + src.packed + dst.packed
    return b"\x08\x00", header[:10] + struct.pack("!H", checksum(header)) + header[12:] + udp


mode, interface = sys.argv[1:3]
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
raw.bind((interface, 0))
if mode == "send":
    macs, src, dst = sys.argv[3:6]
    ethertype, body = packet(src, dst)
    for mac in macs.split(","):
        for _ in range(3):
            raw.send(bytes.fromhex(mac.replace(":", "")) + raw.getsockname()[4] + ethertype + body)
            time.sleep(0.01)
else:
    print("listening", flush=True)
    end, seen = time.monotonic() + float(sys.argv[3]), 0
    while (left := end - time.monotonic()) > 0:
        raw.settimeout(left)
        try:
            data, (_, _, kind, *_) = raw.recvfrom(2048)
        except TimeoutError:
            break
        seen += MARK in data and kind != socket.PACKET_OUTGOING
    print(seen)
