//! Who can reach whom: every class of places against every other, for every protocol and port, from the compiled tables.
//!
//! Nothing is sampled: [`reach::groups`](crate::sim::reach::groups) gathers what no table tells apart, one member of each group
//! answers for all, and groups of one namespace that answer alike everywhere become one class. A pod's traffic to itself never
//! reaches the dataplane and is no cell, nor is what goes by from outside to outside.

mod page;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use serde::Serialize;
use weir_dataplane::model::{Family, proto};

use crate::diff::{Ports, flow};
use crate::sim::reach::{Group, Kind, Nodes, Pair, Span, World, cuts, groups, spans, traffic};

pub use page::page;

/// Who can reach whom.
#[derive(Debug, Serialize)]
pub struct Matrix {
    /// Rows and columns.
    pub classes: Vec<Class>,
    /// Each pair of them that traffic can go between.
    pub cells: Vec<Cell>,
}

/// Places that are alike in everything that is asked here.
#[derive(Debug, Serialize)]
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

/// What becomes of traffic from one class to another.
#[derive(Debug, Serialize)]
pub struct Cell {
    /// Index of the class that opens connections.
    pub from: usize,
    /// Index of the class that they are opened to.
    pub to: usize,
    /// `open`, `partly` or `closed`.
    pub access: Access,
    /// Everything, by how it ends. Of Services only what they serve.
    pub traffic: Vec<Traffic>,
}

/// How much passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
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
#[derive(Debug, Serialize)]
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

/// What is compared of a cell: verdicts and reasons by range.
type Essence = Vec<(Option<Nodes>, &'static str, Vec<&'static str>, Vec<Span>)>;

/// Asks everything.
pub fn matrix(world: &World) -> Matrix {
    let spans: Vec<Span> = spans(&cuts(&[world])).collect();
    let groups = groups(&[world]);
    let count = groups.len();
    let mut numbers: HashMap<Essence, usize> = HashMap::new();
    let mut essences = vec![None; count * count];
    for (f, from) in groups.iter().enumerate() {
        for (t, to) in groups.iter().enumerate() {
            if let Some(essence) = essence(world, from, to, &spans) {
                let next = numbers.len();
                essences[f * count + t] = Some(*numbers.entry(essence).or_insert(next));
            }
        }
    }
    let mut by_number = vec![Essence::new(); numbers.len()];
    numbers.into_iter().for_each(|(essence, number)| by_number[number] = essence);
    let classes = merge(&groups, &essences);
    let mut cells = Vec::new();
    for (f, from) in classes.iter().enumerate() {
        for (t, to) in classes.iter().enumerate() {
            // Of a class against itself any two members' groups will do.
            let pairs = from.iter().flat_map(|a| to.iter().map(move |b| (*a, *b)));
            let found = pairs.into_iter().find_map(|(a, b)| Some((a, b, essences[a * count + b]?)));
            let Some((a, b, number)) = found else { continue };
            cells.push(cell(world, (f, t), (&groups[a], &groups[b]), &by_number[number]));
        }
    }
    let classes = classes.iter().map(|members| class(members.iter().map(|group| &groups[*group]).collect())).collect();
    Matrix { classes, cells }
}

/// Verdicts between two groups; `None` where no traffic goes.
fn essence(world: &World, from: &Group, to: &Group, spans: &[Span]) -> Option<Essence> {
    if from.kind == Kind::Service || (from.kind, to.kind) == (Kind::Outside, Kind::Outside) {
        return None;
    }
    let pairs = from.pairs(to, &[world]).into_iter().filter(|pair| pair.from.family == pair.to.family);
    let mut found: Vec<Essence> = pairs.filter_map(|pair| between(world, &pair, spans)).collect();
    let plain = |essence: &Essence| -> Essence {
        essence.iter().map(|(_, verdict, reasons, spans)| (None, *verdict, reasons.clone(), spans.clone())).collect()
    };
    let alike = found.windows(2).all(|two| plain(&two[0]) == plain(&two[1]));
    // Where it is the same on the own node and elsewhere, nodes do not matter.
    let essence: Essence = if alike { found.first().map(plain)? } else { found.drain(..).flatten().collect() };
    (!essence.is_empty()).then_some(essence)
}

fn between(world: &World, pair: &Pair<'_>, spans: &[Span]) -> Option<Essence> {
    let (a, b) = (pair.from.addresses[0]?, pair.to.addresses[0]?);
    let mut essence = Essence::new();
    for span in spans {
        let flow = flow(a, b, span);
        // Of a virtual address only what it serves; it answers pings itself or not at all.
        if pair.to.kind == Kind::Service && (span.proto == proto::ICMP || !world.serves(&flow)) {
            continue;
        }
        let outcome = world.reach(&flow);
        let mut reasons: Vec<&str> = outcome.ends.iter().filter_map(|end| end.reason).collect();
        reasons.dedup();
        let verdict = outcome.verdict();
        match essence.iter_mut().find(|(_, v, r, _)| *v == verdict && *r == reasons) {
            Some((.., spans)) => spans.push(*span),
            None => essence.push((pair.nodes, verdict, reasons, vec![*span])),
        }
    }
    Some(essence)
}

/// Gathers groups of pods of one namespace that answer alike, as source and as destination, to everybody and among themselves.
fn merge(groups: &[Group], essences: &[Option<usize>]) -> Vec<Vec<usize>> {
    let count = groups.len();
    let at = |f: usize, t: usize| essences[f * count + t];
    let namespace = |group: &Group| group.places[0].name.split('/').next().map(str::to_owned);
    let fits = |a: Option<usize>, b: Option<usize>| a.is_none() || b.is_none() || a == b;
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
    for index in 0..count {
        match classes.iter_mut().find(|class| class.iter().all(|other| alike(*other, index))) {
            Some(class) => class.push(index),
            None => classes.push(vec![index]),
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

fn cell(world: &World, (from, to): (usize, usize), groups: (&Group, &Group), essence: &Essence) -> Cell {
    let mut found = Vec::new();
    let pairs = groups.0.pairs(groups.1, &[world]);
    for (nodes, verdict, _, spans) in essence {
        let pair = pairs.iter().find(|pair| nodes.is_none() || pair.nodes == *nodes);
        let ends = pair.and_then(|pair| Some((pair.from.addresses[0]?, pair.to.addresses[0]?)));
        let Some((a, b)) = ends else { continue };
        let flow = flow(a, b, &spans[0]);
        let outcome = world.reach(&flow);
        found.push(Traffic {
            nodes: *nodes,
            text: traffic(spans) + Nodes::words(*nodes),
            ports: spans.iter().map(Ports::from).collect(),
            verdict,
            passes: outcome.passes(),
            why: world.why(&flow, &outcome),
        });
    }
    let passing = found.iter().filter(|traffic| traffic.passes).count();
    let access = match passing {
        0 if found.iter().all(|traffic| traffic.verdict != "mixed") => Access::Closed,
        n if n == found.len() => Access::Open,
        _ => Access::Partly,
    };
    Cell { from, to, access, traffic: found }
}

impl Matrix {
    /// The cell of two classes.
    pub fn cell(&self, from: usize, to: usize) -> Option<&Cell> {
        self.cells.iter().find(|cell| (cell.from, cell.to) == (from, to))
    }

    /// A grid of marks, with a legend: `.` open, `+` partly, `X` closed.
    pub fn text(&self) -> String {
        let number = |index: usize| (index + 1).to_string();
        let sources: Vec<usize> = (0..self.classes.len()).filter(|c| self.cells.iter().any(|cell| cell.from == *c)).collect();
        let columns: Vec<usize> = (0..self.classes.len()).filter(|c| self.cells.iter().any(|cell| cell.to == *c)).collect();
        let width = number(self.classes.len()).len() + 1;
        let label = |index: usize| {
            let class = &self.classes[index];
            format!("{:>w$}  {}{}", number(index), class.label, if class.family == Family::V6 { " (v6)" } else { "" }, w = width - 1)
        };
        let widest = (0..self.classes.len()).map(|c| label(c).chars().count()).max().unwrap_or(0);
        let mut out = format!("{:<widest$} ", "FROM \\ TO");
        columns.iter().for_each(|c| out.push_str(&format!("{:>width$}", number(*c))));
        out.push('\n');
        let marks: HashMap<(usize, usize), &str> = self
            .cells
            .iter()
            .map(|cell| {
                let mark = match cell.access {
                    Access::Open => ".",
                    Access::Partly => "+",
                    Access::Closed => "X",
                };
                ((cell.from, cell.to), mark)
            })
            .collect();
        for from in sources {
            out.push_str(&format!("{:<widest$} ", label(from)));
            columns.iter().for_each(|to| out.push_str(&format!("{:>width$}", marks.get(&(from, *to)).unwrap_or(&" "))));
            out.truncate(out.trim_end().len());
            out.push('\n');
        }
        let only_columns = columns.iter().filter(|c| self.cells.iter().all(|cell| cell.from != **c));
        only_columns.for_each(|c| out.push_str(&(label(*c) + "\n")));
        out + "\n.  open   +  some ports   X  closed\n"
    }

    /// A line for each class pair and verdict: from, to, traffic, verdict, why.
    pub fn rows(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        for cell in &self.cells {
            let (from, to) = (&self.classes[cell.from], &self.classes[cell.to]);
            for traffic in &cell.traffic {
                let verdict = traffic.verdict.to_owned();
                rows.push(vec![from.label.clone(), to.label.clone(), traffic.text.clone(), verdict, traffic.why.clone()]);
            }
        }
        rows
    }

    /// Comma-separated values (RFC 4180), a line for each class pair, protocol and range of ports.
    pub fn csv(&self) -> String {
        let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
        let mut out = String::from("from,to,family,protocol,first_port,last_port,verdict,passes,why\r\n");
        for cell in &self.cells {
            let (from, to) = (&self.classes[cell.from], &self.classes[cell.to]);
            let family = if from.family == Family::V4 { "ipv4" } else { "ipv6" };
            for traffic in &cell.traffic {
                for ports in &traffic.ports {
                    let ends = format!("{},{}", quoted(&from.members.join(" ")), quoted(&to.members.join(" ")));
                    let Ports { proto, first, last } = ports;
                    let (verdict, passes) = (traffic.verdict, traffic.passes);
                    out.push_str(&format!("{ends},{family},{proto},{first},{last},{verdict},{passes},{}\r\n", quoted(&traffic.why)));
                }
            }
        }
        out
    }
}
