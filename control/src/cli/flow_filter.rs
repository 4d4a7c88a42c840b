//! The filters of `weir flows`: those of `hubble observe`, by the same names.
//!
//! Values of one flag are alternatives, different flags must all hold. `--not` turns the filter behind it around, so order
//! matters, which is why clap's matches are read by position here.

use std::net::IpAddr;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use ipnet::IpNet;
use weir_dataplane::flows::{End, EventType, Filter, Labels, PodName, Term, Test, Verdict};
use weir_dataplane::model::Direction;
use weir_dataplane::wire::tcp;

use super::common::{parse_protocol, parse_reason};

/// The filter that the flags describe.
#[derive(Clone, Debug, Default)]
pub(super) struct FilterArgs(pub(super) Filter);

/// One flag.
struct Flag {
    name: &'static str,
    value: &'static str,
    help: &'static str,
    read: fn(&[String]) -> Result<Test, String>,
}

const NOT: &str = "not";

macro_rules! sided {
    ($name:literal, $value:literal, $what:literal, $read:ident, $test:ident) => {
        [
            Flag {
                name: $name,
                value: $value,
                help: concat!("Either end ", $what),
                read: |v| $read(v).map(|v| Test::$test(End::Either, v)),
            },
            Flag {
                name: concat!("from-", $name),
                value: $value,
                help: concat!("The source ", $what),
                read: |v| $read(v).map(|v| Test::$test(End::From, v)),
            },
            Flag {
                name: concat!("to-", $name),
                value: $value,
                help: concat!("The destination ", $what),
                read: |v| $read(v).map(|v| Test::$test(End::To, v)),
            },
        ]
    };
}

fn flags() -> impl Iterator<Item = Flag> {
    let sided = [
        sided!("pod", "[NS/]POD", "is a pod whose name starts so; without a namespace, of default", names, Pod),
        sided!("namespace", "NS", "is a pod of this namespace", strings, Namespace),
        sided!("label", "K=V,…", "is a pod with these labels", labels, Label),
        sided!("ip", "IP|CIDR", "has this address", nets, Ip),
        sided!("port", "N|N-M", "has this port", ports, Port),
        sided!("service", "[NS/]SVC", "is asked for through a Service whose name starts so", names, Service),
    ];
    let single = [
        Flag {
            name: "verdict",
            value: "VERDICT",
            help: "FORWARDED or DROPPED; refusals count as dropped",
            read: |v| each(v, verdict).map(Test::Verdict),
        },
        Flag {
            name: "protocol",
            value: "PROTO",
            help: "tcp, udp, sctp, icmp, icmpv6 or a number",
            read: |v| each(v, parse_protocol).map(Test::Protocol),
        },
        Flag {
            name: "drop-reason-desc",
            value: "REASON",
            help: "Why it was dropped, e.g. POLICY_DENIED",
            read: |v| each(v, parse_reason).map(Test::Reason),
        },
        Flag {
            name: "type",
            value: "TYPE",
            help: "drop, trace, or trace:to-endpoint, to-stack, to-overlay, to-network",
            read: |v| each(v, event_type).map(Test::Type),
        },
        Flag {
            name: "traffic-direction",
            value: "DIRECTION",
            help: "ingress or egress, relative to the pod",
            read: |v| each(v, direction).map(Test::Traffic),
        },
        Flag {
            name: "tcp-flags",
            value: "FLAGS",
            help: "TCP packets with all of these flags, e.g. syn+ack",
            read: |v| each(v, tcp_flags).map(Test::TcpFlags),
        },
        Flag { name: "node-name", value: "NODE", help: "Decided on this node", read: |v| strings(v).map(Test::Node) },
    ];
    sided.into_iter().flatten().chain(single)
}

impl clap::Args for FilterArgs {
    fn augment_args(command: Command) -> Command {
        let not = Arg::new(NOT).long(NOT).action(ArgAction::Append).num_args(0).default_missing_value("true");
        let not = not.help("Turns the filter behind it around").help_heading("Filters");
        flags().fold(command.arg(not), |command, flag| {
            let arg = Arg::new(flag.name).long(flag.name).value_name(flag.value).help(flag.help).help_heading("Filters");
            command.arg(arg.action(ArgAction::Append))
        })
    }
    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for FilterArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        // Where each filter stands on the command line.
        let mut given: Vec<(usize, Flag, String)> = Vec::new();
        for flag in flags() {
            let values = matches.get_many::<String>(flag.name).into_iter().flatten();
            for (index, value) in matches.indices_of(flag.name).into_iter().flatten().zip(values) {
                given.push((index, Flag { ..flag }, value.clone()));
            }
        }
        given.sort_by_key(|(index, ..)| *index);
        let nots: Vec<usize> = matches.indices_of(NOT).into_iter().flatten().collect();
        let mut turned = vec![false; given.len()];
        for not in &nots {
            match given.iter().position(|(index, ..)| index > not) {
                Some(next) => turned[next] = true,
                None => return Err(clap::Error::raw(ErrorKind::ValueValidation, "--not stands in front of no filter\n")),
            }
        }
        // The values of one flag are alternatives; what is turned around stands alone.
        let mut terms: Vec<(Flag, bool, Vec<String>)> = Vec::new();
        for ((_, flag, value), not) in given.into_iter().zip(turned) {
            let values = if flag.name.ends_with("label") { vec![value] } else { value.split(',').map(|v| v.trim().to_owned()).collect() };
            match terms.iter_mut().find(|(of, turned, _)| of.name == flag.name && !not && !*turned) {
                Some((.., kept)) => kept.extend(values),
                None => terms.push((flag, not, values)),
            }
        }
        let read = |(flag, not, values): (Flag, bool, Vec<String>)| {
            let fault = |fault| clap::Error::raw(ErrorKind::ValueValidation, format!("--{}: {fault}\n", flag.name));
            Ok(Term { not, test: (flag.read)(&values).map_err(fault)? })
        };
        Ok(Self(Filter(terms.into_iter().map(read).collect::<Result<_, clap::Error>>()?)))
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn each<T>(values: &[String], read: fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    values.iter().map(|value| read(value)).collect()
}

fn strings(values: &[String]) -> Result<Vec<String>, String> {
    Ok(values.to_vec())
}

fn names(values: &[String]) -> Result<Vec<PodName>, String> {
    each(values, |text| {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        Ok(PodName { namespace: namespace.into(), name: name.into() })
    })
}

fn labels(values: &[String]) -> Result<Vec<Labels>, String> {
    each(values, |text| Ok(Labels::parse(text)))
}

fn nets(values: &[String]) -> Result<Vec<IpNet>, String> {
    each(values, |text| {
        let address = text.parse::<IpAddr>().map(IpNet::from);
        address.or_else(|_| text.parse()).map_err(|_| format!("{text:?} is neither an address nor a CIDR"))
    })
}

fn ports(values: &[String]) -> Result<Vec<(u16, u16)>, String> {
    each(values, |text| {
        let number = |part: &str| part.parse().map_err(|_| format!("{text:?} is no port or range of ports"));
        match text.split_once('-') {
            Some((first, last)) => Ok((number(first)?, number(last)?)),
            None => number(text).map(|port| (port, port)),
        }
    })
}

fn verdict(text: &str) -> Result<Verdict, String> {
    match text.to_ascii_uppercase().as_str() {
        "FORWARDED" => Ok(Verdict::Forwarded),
        "DROPPED" => Ok(Verdict::Dropped),
        _ => Err(format!("{text:?} is no verdict; there are FORWARDED and DROPPED")),
    }
}

fn event_type(text: &str) -> Result<EventType, String> {
    match text.strip_prefix("trace:").unwrap_or(text) {
        "drop" => Ok(EventType::Drop),
        "trace" => Ok(EventType::Trace),
        "to-endpoint" => Ok(EventType::ToEndpoint),
        "to-stack" => Ok(EventType::ToStack),
        "to-overlay" => Ok(EventType::ToOverlay),
        "to-network" => Ok(EventType::ToNetwork),
        _ => Err(format!("{text:?} is no type; there are drop, trace and trace:to-endpoint, to-stack, to-overlay, to-network")),
    }
}

fn direction(text: &str) -> Result<Direction, String> {
    match text.to_ascii_lowercase().as_str() {
        "ingress" => Ok(Direction::Ingress),
        "egress" => Ok(Direction::Egress),
        _ => Err(format!("{text:?} is neither ingress nor egress")),
    }
}

fn tcp_flags(text: &str) -> Result<u8, String> {
    text.split('+').try_fold(0, |bits, name| {
        let bit = match name.to_ascii_lowercase().as_str() {
            "fin" => tcp::FIN,
            "syn" => tcp::SYN,
            "rst" => tcp::RST,
            "psh" => tcp::PSH,
            "ack" => tcp::ACK,
            _ => return Err(format!("{name:?} is no flag of TCP; there are fin, syn, rst, psh, ack")),
        };
        Ok(bits | bit)
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use weir_dataplane::model::proto;
    use weir_dataplane::verdict::DropReason;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        filter: FilterArgs,
    }

    fn read(arguments: &[&str]) -> Result<Vec<Term>, String> {
        let line = Line::try_parse_from(["x"].iter().chain(arguments));
        line.map(|line| line.filter.0.0).map_err(|error| error.to_string())
    }

    #[test]
    fn values_of_one_flag_are_alternatives_and_not_turns_the_next_filter_around() {
        let terms = read(&["--port", "80", "--not", "--protocol", "udp", "--port", "8000-9000", "--from-pod", "shop/web,api"]).unwrap();
        let name = |namespace: &str, name: &str| PodName { namespace: namespace.into(), name: name.into() };
        let term = |not, test| Term { not, test };
        assert_eq!(
            terms,
            [
                term(false, Test::Port(End::Either, vec![(80, 80), (8000, 9000)])),
                term(true, Test::Protocol(vec![proto::UDP])),
                term(false, Test::Pod(End::From, vec![name("shop", "web"), name("default", "api")])),
            ]
        );
    }

    #[test]
    fn labels_keep_their_commas_and_reasons_have_names_and_numbers() {
        let terms = read(&["--to-label", "app=web,tier", "--drop-reason-desc", "policy_denied,196"]).unwrap();
        assert_eq!(terms[0].test, Test::Label(End::To, vec![Labels::parse("app=web,tier")]));
        assert_eq!(terms[1].test, Test::Reason(vec![DropReason::PolicyDenied, DropReason::TtlExceeded]));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (arguments, words) in [
            (&["--verdict", "MAYBE"][..], "no verdict"),
            (&["--ip", "10.0.0"], "neither an address nor a CIDR"),
            (&["--port", "http"], "no port"),
            (&["--ip", "10.0.0.1", "--not"], "in front of no filter"),
            (&["--drop-reason-desc", "BAD_LUCK"], "no drop reason"),
        ] {
            let said = read(arguments).unwrap_err();
            assert!(said.contains(words), "{arguments:?}: {said}");
        }
    }
}
