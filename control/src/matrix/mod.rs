//! Who can reach whom: every class of places against every other, for every protocol and port, from the compiled tables.
//!
//! Nothing is sampled: [`reach::groups`](crate::sim::reach::groups) gathers what no table tells apart, one member of each group
//! answers for all, and groups of one namespace that answer alike everywhere become one class. A pod's traffic to itself never
//! reaches the dataplane and is no cell, nor is what goes by from outside to outside.

mod page;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::io;

use serde::ser::{Serialize, SerializeStruct, Serializer};
use weir_dataplane::model::Family;

use crate::diff::Ports;
use crate::sim::reach::{Group, Kind, Nodes, Pair, Span, World, groups, push, ranges, traffic};

pub use page::page;

/// Who can reach whom.
pub struct Matrix<'a> {
    world: &'a World,
    groups: Vec<Group>,
    /// What cells say, each distinct one once.
    fares: Vec<Vec<Fare>>,
    /// Rows and columns.
    pub classes: Vec<Class>,
    /// Each pair of them that traffic can go between.
    pub cells: Vec<Cell>,
}

/// Places that are alike in everything that is asked here.
#[derive(Debug, serde::Serialize)]
pub struct Class {
    /// The first members' names.
    pub label: String,
    /// `pod`, `node`, `service` or `outside`.
    pub kind: &'static str,
    /// `ipv4` or `ipv6`.
    pub family: Family,
    /// All of them.
    pub members: Vec<String>,
}

/// What becomes of traffic from one class to another; [`Matrix::traffic`] tells it in full.
#[derive(Debug)]
pub struct Cell {
    /// Index of the class that opens connections.
    pub from: usize,
    /// Index of the class that they are opened to.
    pub to: usize,
    /// How much passes.
    pub access: Access,
    /// Index in `fares`.
    fares: u32,
    /// The groups that answer for the classes.
    groups: (u32, u32),
}

/// How much passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// All of it.
    Open,
    /// Some.
    Partly,
    /// Nothing.
    Closed,
}

/// Traffic that ends alike.
#[derive(Debug, serde::Serialize)]
pub struct Traffic {
    /// Where one end is a node: whether it is the other end's own. `null` where that does not matter.
    pub nodes: Option<Nodes>,
    /// Protocols and ports, for people.
    pub text: String,
    /// Protocols and ports.
    pub ports: Vec<Ports>,
    /// `forward`, `host`, `reject`, `drop`, or `mixed` where it depends on the backend.
    pub verdict: &'static str,
    /// It is delivered, whichever backend is chosen.
    pub passes: bool,
    /// Which rules or reasons say so, for the class's first member.
    pub why: String,
}

/// What is compared of traffic that ends alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Fare {
    nodes: Option<Nodes>,
    verdict: &'static str,
    passes: bool,
    reasons: Vec<&'static str>,
    spans: Vec<Span>,
}

/// Asks everything.
pub fn matrix(world: &World) -> Matrix<'_> {
    let groups = groups(&[world]);
    let count = groups.len();
    let mut numbers: HashMap<Vec<Fare>, u32> = HashMap::new();
    // Services never open a connection: they have no row.
    let mut found = vec![Vec::new(); count];
    let shared = shared(world, &groups);
    for (f, from) in groups.iter().enumerate().filter(|(_, from)| from.kind != Kind::Service) {
        found[f] = vec![None; count];
        let mut by_backends: HashMap<u32, Option<Vec<Fare>>> = HashMap::new();
        for (t, to) in groups.iter().enumerate() {
            let fares = match shared[t].filter(|_| from.kind == Kind::Pod && from.places[0].family == to.places[0].family) {
                None => fares(world, from, to),
                Some((backends, span)) => {
                    let fares = by_backends.entry(backends).or_insert_with(|| fares(world, from, to)).clone();
                    fares.map(|fares| fares.into_iter().map(|fare| Fare { spans: vec![span], ..fare }).collect())
                }
            };
            if let Some(fares) = fares {
                let next = numbers.len() as u32;
                found[f][t] = Some(*numbers.entry(fares).or_insert(next));
            }
        }
    }
    let mut fares = vec![Vec::new(); numbers.len()];
    numbers.into_iter().for_each(|(fare, number)| fares[number as usize] = fare);
    let merged = merge(&groups, &found);
    let mut cells = Vec::new();
    for (from, sources) in merged.iter().enumerate() {
        for (to, destinations) in merged.iter().enumerate() {
            // Of a class against itself any two members' groups will do.
            let pairs = sources.iter().flat_map(|a| destinations.iter().map(move |b| (*a, *b)));
            let Some((a, b, number)) = pairs.into_iter().find_map(|(a, b)| Some((a, b, found[a].get(b).copied().flatten()?))) else {
                continue;
            };
            let access = access(&fares[number as usize]);
            cells.push(Cell { from, to, access, fares: number, groups: (a as u32, b as u32) });
        }
    }
    let classes = merged.iter().map(|members| class(members.iter().map(|group| &groups[*group]).collect())).collect();
    Matrix { world, groups, fares, classes, cells }
}

/// The port of each Service that has one, and the number of its backends: pods ask all that have the same ones alike.
fn shared(world: &World, groups: &[Group]) -> Vec<Option<(u32, Span)>> {
    let mut known = HashMap::new();
    let number = |group: &Group| {
        let address = group.places[0].addresses[0].filter(|_| group.kind == Kind::Service)?;
        let (span, backends) = world.backends(address)?;
        let next = known.len() as u32;
        Some((*known.entry((span.proto, backends)).or_insert(next), span))
    };
    groups.iter().map(number).collect()
}

/// What becomes of all traffic between two groups; `None` where none goes.
fn fares(world: &World, from: &Group, to: &Group) -> Option<Vec<Fare>> {
    if from.kind == Kind::Service || (from.kind, to.kind) == (Kind::Outside, Kind::Outside) {
        return None;
    }
    let pairs = from.pairs(to, &[world]).into_iter().filter(|pair| pair.from.family == pair.to.family);
    let mut found: Vec<Vec<Fare>> = pairs.filter_map(|pair| between(world, &pair)).collect();
    let plain = |fares: &Vec<Fare>| -> Vec<Fare> { fares.iter().map(|fare| Fare { nodes: None, ..fare.clone() }).collect() };
    let alike = found.windows(2).all(|two| plain(&two[0]) == plain(&two[1]));
    // Where it is the same on the own node and elsewhere, nodes do not matter.
    let fares = if alike { found.first().map(plain)? } else { found.drain(..).flatten().collect() };
    (!fares.is_empty()).then_some(fares)
}

fn between(world: &World, pair: &Pair<'_>) -> Option<Vec<Fare>> {
    let (from, to) = (pair.from.addresses[0]?, pair.to.addresses[0]?);
    let mut fares: Vec<Fare> = Vec::new();
    let ranges = match pair.to.kind {
        // Of a virtual address only what it serves; it answers pings itself or not at all.
        Kind::Service => world.served(to).map(|span| (span, vec![world.reach(&span.flow(from, to))])).collect(),
        _ => ranges(&[world], &[(from, to)]),
    };
    for (span, outcomes) in ranges {
        for outcome in outcomes {
            let (verdict, passes) = (outcome.verdict(), outcome.passes());
            let reasons: BTreeSet<&str> = outcome.ends.iter().filter_map(|end| end.reason).collect();
            let reasons: Vec<&str> = reasons.into_iter().collect();
            match fares.iter_mut().find(|fare| (fare.verdict, fare.passes, &fare.reasons) == (verdict, passes, &reasons)) {
                Some(fare) => push(&mut fare.spans, span),
                None => fares.push(Fare { nodes: pair.nodes, verdict, passes, reasons, spans: vec![span] }),
            }
        }
    }
    Some(fares)
}

fn access(fares: &[Fare]) -> Access {
    match fares.iter().filter(|fare| fare.passes).count() {
        0 if fares.iter().all(|fare| fare.verdict != "mixed") => Access::Closed,
        n if n == fares.len() => Access::Open,
        _ => Access::Partly,
    }
}

/// Gathers groups of pods of one namespace that answer alike, as source and as destination, to everybody and among themselves.
fn merge(groups: &[Group], found: &[Vec<Option<u32>>]) -> Vec<Vec<usize>> {
    let count = groups.len();
    let at = |f: usize, t: usize| found[f].get(t).copied().flatten();
    let namespace = |group: &Group| group.places[0].name.split('/').next().map(str::to_owned);
    let fits = |a: Option<u32>, b: Option<u32>| a.is_none() || b.is_none() || a == b;
    let alike = |i: usize, j: usize| {
        let (a, b) = (&groups[i], &groups[j]);
        (a.kind, a.places[0].family) == (b.kind, b.places[0].family)
            && a.kind == Kind::Pod
            && namespace(a) == namespace(b)
            && at(i, j) == at(j, i)
            && fits(at(i, i), at(i, j))
            && fits(at(j, j), at(i, j))
            && (0..count).filter(|k| *k != i && *k != j).all(|k| at(i, k) == at(j, k) && at(k, i) == at(k, j))
    };
    let mut classes: Vec<Vec<usize>> = Vec::new();
    let mut by_namespace: HashMap<Option<String>, Vec<usize>> = HashMap::new();
    for (index, group) in groups.iter().enumerate() {
        let pods = group.kind == Kind::Pod;
        let near = by_namespace.entry(namespace(group).filter(|_| pods)).or_default();
        let place = near.iter().copied().find(|class| pods && classes[*class].iter().all(|other| alike(*other, index)));
        match place.map(|class| &mut classes[class]) {
            Some(class) => class.push(index),
            None => {
                near.push(classes.len());
                classes.push(vec![index]);
            }
        }
    }
    classes
}

fn class(groups: Vec<&Group>) -> Class {
    let kind = match groups[0].kind {
        Kind::Pod => "pod",
        Kind::Node => "node",
        Kind::Service => "service",
        Kind::Outside => "outside",
    };
    let places = groups.iter().flat_map(|group| group.places.clone()).collect();
    let all = Group { kind: groups[0].kind, places };
    let family = all.places[0].family;
    Class { label: all.label(), kind, family, members: all.names().into_iter().map(str::to_owned).collect() }
}

impl Matrix<'_> {
    /// What becomes of a cell's traffic, by how it ends, and why. Of Services only what they serve.
    pub fn traffic(&self, cell: &Cell) -> Vec<Traffic> {
        let (from, to) = (&self.groups[cell.groups.0 as usize], &self.groups[cell.groups.1 as usize]);
        let pairs = from.pairs(to, &[self.world]);
        let traffic = |fare: &Fare| {
            let pair = pairs.iter().find(|pair| fare.nodes.is_none() || pair.nodes == fare.nodes)?;
            let flow = fare.spans[0].flow(pair.from.addresses[0]?, pair.to.addresses[0]?);
            let why = self.world.why(&flow, &self.world.reach(&flow));
            let text = traffic(&fare.spans) + Nodes::words(fare.nodes);
            let ports = fare.spans.iter().map(Ports::from).collect();
            Some(Traffic { nodes: fare.nodes, text, ports, verdict: fare.verdict, passes: fare.passes, why })
        };
        self.fares[cell.fares as usize].iter().filter_map(traffic).collect()
    }

    /// The cell of two classes.
    pub fn cell(&self, from: usize, to: usize) -> Option<&Cell> {
        let at = self.cells.binary_search_by_key(&(from, to), |cell| (cell.from, cell.to)).ok()?;
        self.cells.get(at)
    }

    /// A grid of marks, with a legend: `.` open, `+` partly, `X` closed.
    pub fn text(&self) -> String {
        let number = |index: usize| (index + 1).to_string();
        let (sources, columns): (BTreeSet<usize>, BTreeSet<usize>) = self.cells.iter().map(|cell| (cell.from, cell.to)).unzip();
        let width = number(self.classes.len()).len() + 1;
        let label = |index: usize| {
            let class = &self.classes[index];
            format!("{:>w$}  {}{}", number(index), class.label, if class.family == Family::V6 { " (v6)" } else { "" }, w = width - 1)
        };
        let widest = (0..self.classes.len()).map(|c| label(c).chars().count()).max().unwrap_or(0);
        let mut out = format!("{:<widest$} ", "FROM \\ TO");
        columns.iter().for_each(|c| out.push_str(&format!("{:>width$}", number(*c))));
        out.push('\n');
        // Cells stand row by row, column by column.
        for row in self.cells.chunk_by(|a, b| a.from == b.from) {
            out.push_str(&format!("{:<widest$} ", label(row[0].from)));
            let mut cells = row.iter().peekable();
            for column in &columns {
                let mark = match cells.next_if(|cell| cell.to == *column).map(|cell| cell.access) {
                    None => " ",
                    Some(Access::Open) => ".",
                    Some(Access::Partly) => "+",
                    Some(Access::Closed) => "X",
                };
                out.push_str(&format!("{mark:>width$}"));
            }
            out.truncate(out.trim_end().len());
            out.push('\n');
        }
        columns.difference(&sources).for_each(|c| out.push_str(&(label(*c) + "\n")));
        out + "\n.  open   +  some ports   X  closed\n"
    }

    /// A line for each class pair and verdict: from, to, traffic, verdict, why.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        for cell in &self.cells {
            let (from, to) = (&self.classes[cell.from], &self.classes[cell.to]);
            for traffic in self.traffic(cell) {
                let verdict = traffic.verdict.to_owned();
                rows.push(vec![from.label.clone(), to.label.clone(), traffic.text.clone(), verdict, traffic.why.clone()]);
            }
        }
        rows
    }

    /// Writes comma-separated values (RFC 4180), a line for each class pair, protocol and range of ports.
    ///
    /// # Errors
    /// Where `out` takes no more.
    pub fn csv(&self, out: &mut impl io::Write) -> io::Result<()> {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        out.write_all(b"from,to,family,protocol,first_port,last_port,verdict,passes,why\r\n")?;
        for cell in &self.cells {
            let (from, to) = (&self.classes[cell.from], &self.classes[cell.to]);
            let family = if from.family == Family::V4 { "ipv4" } else { "ipv6" };
            for traffic in self.traffic(cell) {
                for ports in &traffic.ports {
                    let ends = format!("{},{}", quoted(&from.members.join(" ")), quoted(&to.members.join(" ")));
                    let Ports { proto, first, last } = ports;
                    let (verdict, passes) = (traffic.verdict, traffic.passes);
                    write!(out, "{ends},{family},{proto},{first},{last},{verdict},{passes},{}\r\n", quoted(&traffic.why))?;
                }
            }
        }
        Ok(())
    }
}

/// One object, cell by cell: the reasons of all cells are never in memory at once.
impl Serialize for Matrix<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Told {
            from: usize,
            to: usize,
            access: Access,
            traffic: Vec<Traffic>,
        }
        struct Cells<'a>(&'a Matrix<'a>);
        impl Serialize for Cells<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_seq(self.0.cells.iter().map(|cell| {
                    let Cell { from, to, access, .. } = *cell;
                    Told { from, to, access, traffic: self.0.traffic(cell) }
                }))
            }
        }
        let mut object = serializer.serialize_struct("Matrix", 2)?;
        object.serialize_field("classes", &self.classes)?;
        object.serialize_field("cells", &Cells(self))?;
        object.end()
    }
}
