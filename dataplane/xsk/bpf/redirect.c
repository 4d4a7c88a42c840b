// One XDP program for all ports: which packets the workers get, and which stay with the kernel.
//
// From a pod or host port everything goes to the worker of its queue. From the uplink only what is ours (see `ours`);
// everything else passes untouched, whatever it is: VLAN, ARP, NDP, ssh. A packet that is ours and has no worker is
// dropped: it must not reach a pod past its policy. Maps are filled by redirect.rs.

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum kind { POD = 0, HOST = 1, UPLINK = 2 };
enum { TCP = 6, UDP = 17, ICMP = 1, ICMP6 = 58, SCTP = 132, FRAGMENT = 44 };

struct port { __u32 first_slot; __u16 queues; __u16 kind; };
// Written as one 8-byte word, so that a packet sees all old or all new. Host byte order; masquerade none: low > high.
struct settings { __u16 vtep_port, masquerade_low, masquerade_high, unused; };
// IPv6, or IPv4 as ::ffff:a.b.c.d.
struct address { __u32 word[4]; };
struct prefix { __u32 bits; struct address address; };
struct frontend { struct address address; __u16 port_be; __u8 proto; __u8 unused; };
struct fragment { struct address src, dst; __u32 id; __u32 proto; };
// What decides: the same for a packet and for one that an ICMP error quotes.
struct packet { struct address src, dst; __u32 l4, id, proto, first, later; };

#define HASH(name, type_, key_, value_, entries, flags) \
	struct { __uint(type, type_); __type(key, key_); __type(value, value_); __uint(max_entries, entries); \
		 __uint(map_flags, flags); } name SEC(".maps")
HASH(ports, BPF_MAP_TYPE_HASH, __u32, struct port, 1, 0); // by ifindex; sized when loaded
HASH(settings, BPF_MAP_TYPE_ARRAY, __u32, struct settings, 1, 0);
HASH(node_addresses, BPF_MAP_TYPE_HASH, struct address, __u8, 4096, BPF_F_NO_PREALLOC);
HASH(pod_cidrs, BPF_MAP_TYPE_LPM_TRIE, struct prefix, __u8, 65536, BPF_F_NO_PREALLOC);
HASH(frontends, BPF_MAP_TYPE_HASH, struct frontend, __u8, 262144, BPF_F_NO_PREALLOC);
HASH(fragments, BPF_MAP_TYPE_LRU_HASH, struct fragment, __u8, 4096, 0);
struct { __uint(type, BPF_MAP_TYPE_XSKMAP); __uint(key_size, 4); __uint(value_size, 4); __uint(max_entries, 1); } sockets SEC(".maps");

static __always_inline void mapped(struct address *to, __u32 v4)
{
	to->word[0] = to->word[1] = 0;
	to->word[2] = bpf_htonl(0xffff);
	to->word[3] = v4;
}

// Reads the IPv4 header at `at`; 0 if there is none.
static __always_inline int read_v4(struct xdp_md *ctx, __u32 at, struct packet *p)
{
	struct { __u8 version_ihl, tos; __be16 total, id, frag; __u8 ttl, proto; __be16 sum; __be32 src, dst; } h;
	if (bpf_xdp_load_bytes(ctx, at, &h, 20) || h.version_ihl >> 4 != 4 || (h.version_ihl & 15) < 5)
		return 0;
	mapped(&p->src, h.src);
	mapped(&p->dst, h.dst);
	p->l4 = at + (h.version_ihl & 15) * 4;
	p->proto = h.proto;
	p->id = h.id;
	p->later = (h.frag & bpf_htons(0x1fff)) != 0;
	p->first = !p->later && (h.frag & bpf_htons(0x2000)) != 0;
	return 1;
}

// Reads the IPv6 header at `at` and up to 8 extension headers; 0 if there is none, or more.
static __always_inline int read_v6(struct xdp_md *ctx, __u32 at, struct packet *p)
{
	struct { __be32 version_flow; __be16 len; __u8 next, hops; struct address src, dst; } h;
	struct { __u8 next, len; __be16 frag; __be32 id; } e;
	if (bpf_xdp_load_bytes(ctx, at, &h, 40) || (h.version_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
		return 0;
	p->src = h.src;
	p->dst = h.dst;
	p->l4 = at + 40;
	p->proto = h.next;
	p->id = p->first = p->later = 0;
	for (int n = 0; n < 9; n++) {
		if (p->proto != 0 && p->proto != 43 && p->proto != 60 && p->proto != 51 && p->proto != FRAGMENT)
			return 1;
		if (n == 8 || bpf_xdp_load_bytes(ctx, p->l4, &e, 8))
			return 0;
		if (p->proto == FRAGMENT) {
			p->id = e.id;
			p->later = (e.frag & bpf_htons(0xfff8)) != 0;
			p->first = !p->later && (e.frag & bpf_htons(1)) != 0;
		}
		p->l4 += p->proto == FRAGMENT ? 8 : p->proto == 51 ? (e.len + 2) * 4 : (e.len + 1) * 8;
		p->proto = e.next;
		if (p->later)
			return 1;
	}
	return 0;
}

static __always_inline int in_pod_cidr(const struct address *a)
{
	struct prefix key = { .bits = 128, .address = *a };
	return bpf_map_lookup_elem(&pod_cidrs, &key) != 0;
}

static __always_inline int masqueraded(const struct settings *s, __be16 port)
{
	return bpf_ntohs(port) >= s->masquerade_low && bpf_ntohs(port) <= s->masquerade_high;
}

static __always_inline int is_frontend(const struct address *a, __u8 proto, __be16 port)
{
	struct frontend key = { .address = *a, .port_be = port, .proto = proto };
	return bpf_map_lookup_elem(&frontends, &key) != 0;
}

static __always_inline int has_ports(__u32 proto) { return proto == TCP || proto == UDP || proto == SCTP; }

// Is the packet that an ICMP error quotes one that we sent: masqueraded, from a frontend, or overlay?
static __always_inline int quoted_is_ours(struct xdp_md *ctx, const struct settings *s, struct packet *q)
{
	__be16 word[4] = {};
	if (q->later || bpf_xdp_load_bytes(ctx, q->l4, word, 8))
		return 0;
	int from_node = bpf_map_lookup_elem(&node_addresses, &q->src) != 0;
	if (has_ports(q->proto))
		return is_frontend(&q->src, q->proto, word[0]) || (from_node && masqueraded(s, word[0])) ||
		       (from_node && q->proto == UDP && s->vtep_port && word[1] == bpf_htons(s->vtep_port));
	int echo = (q->proto == ICMP && (word[0] & bpf_htons(0xff00)) == bpf_htons(0x0800)) ||
		   (q->proto == ICMP6 && (word[0] & bpf_htons(0xff00)) == bpf_htons(0x8000));
	return echo && from_node && masqueraded(s, word[2]);
}

static __always_inline int ours_by_l4(struct xdp_md *ctx, const struct settings *s, struct packet *p)
{
	__be16 word[4] = {};
	if (bpf_xdp_load_bytes(ctx, p->l4, word, 8))
		return 0;
	int to_node = bpf_map_lookup_elem(&node_addresses, &p->dst) != 0;
	if (has_ports(p->proto))
		return (to_node && p->proto == UDP && s->vtep_port && word[1] == bpf_htons(s->vtep_port)) ||
		       (to_node && masqueraded(s, word[1])) || is_frontend(&p->dst, p->proto, word[1]);
	__u8 type = bpf_ntohs(word[0]) >> 8;
	struct packet quoted;
	if (p->proto == ICMP) {
		if (type == 0)
			return to_node && masqueraded(s, word[2]);
		// Destination unreachable, time exceeded, parameter problem.
		return (type == 3 || type == 11 || type == 12) && read_v4(ctx, p->l4 + 8, &quoted) && quoted_is_ours(ctx, s, &quoted);
	}
	if (p->proto == ICMP6) {
		if (type == 129)
			return to_node && masqueraded(s, word[2]);
		return type >= 1 && type <= 4 && read_v6(ctx, p->l4 + 8, &quoted) && quoted_is_ours(ctx, s, &quoted);
	}
	return 0;
}

static __always_inline int ours(struct xdp_md *ctx)
{
	struct packet p;
	__be16 ethertype;
	__u32 zero = 0;
	struct settings *s = bpf_map_lookup_elem(&settings, &zero);
	if (!s || bpf_xdp_load_bytes(ctx, 12, &ethertype, 2))
		return 0;
	if (ethertype == bpf_htons(0x0800)) {
		if (!read_v4(ctx, 14, &p))
			return 0;
	} else if (ethertype == bpf_htons(0x86dd)) {
		if (!read_v6(ctx, 14, &p))
			return 0;
		// Neighbour discovery speaks for the node, whatever addresses stand in it (RFC 4861 §4).
		__u8 type = 0;
		if (p.proto == ICMP6 && !p.later && !bpf_xdp_load_bytes(ctx, p.l4, &type, 1) && type >= 133 && type <= 137)
			return 0;
	} else {
		return 0;
	}
	int yes = !p.later && ours_by_l4(ctx, s, &p);
	if (yes && !p.first)
		return 1;
	if (in_pod_cidr(&p.src) || in_pod_cidr(&p.dst))
		return 1;
	if (!p.later && !p.first)
		return 0;
	// Later fragments carry no ports: they follow their first one, which must come before them. Its fate is written down
	// either way, so that a reused id does not inherit an old one.
	struct fragment key = { .src = p.src, .dst = p.dst, .id = p.id, .proto = p.proto };
	__u8 one = 1;
	if (p.later)
		return bpf_map_lookup_elem(&fragments, &key) != 0;
	if (yes)
		bpf_map_update_elem(&fragments, &key, &one, BPF_ANY);
	else
		bpf_map_delete_elem(&fragments, &key);
	return yes;
}

// Packets may consist of several buffers; headers are read by bpf_xdp_load_bytes, wherever they lie.
SEC("xdp.frags")
int redirect(struct xdp_md *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &ifindex);
	// A port is in the map before the program is attached and after it is detached.
	if (!port || (port->kind == UPLINK && !ours(ctx)))
		return XDP_PASS;
	if (ctx->rx_queue_index >= port->queues)
		return XDP_DROP;
	return bpf_redirect_map(&sockets, port->first_slot + ctx->rx_queue_index, XDP_DROP);
}

char _license[] SEC("license") = "Apache-2.0";
