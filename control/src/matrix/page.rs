//! The matrix as one HTML page that needs nothing else: a heat map, a filter, and the reasons of the cell that is clicked.
//!
//! A large cluster has millions of cells and few that differ: rows and columns that say the same are there once, what a cell says
//! is a number, and reasons, which do differ, are there only where there are few cells; else the page names the command that
//! gives them.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use serde::Serialize;
use weir_dataplane::model::proto;

use super::{Access, Cell, Class, Fare, Matrix, access};
use crate::sim::reach::{Nodes, traffic};

/// Where the data goes.
const DATA: &str = "/*DATA*/";
/// Most cells whose reasons are in the page: some 10 MB, and a second to find them.
const REASONS_MAX: usize = 40_000;

/// What the page's script reads.
#[derive(Serialize)]
struct Data<'a> {
    classes: &'a [Class],
    /// What cells say.
    fares: Vec<Told>,
    /// The classes that open connections, and for each the number of its line in `lines`.
    rows: Vec<(usize, u32)>,
    /// The classes that connections are opened to, and for each its place in a line.
    columns: Vec<(usize, u32)>,
    /// What each cell says, as an index in `fares`, or -1 where there is none.
    lines: Vec<Vec<i64>>,
    /// Every distinct reason.
    reasons: Vec<String>,
    /// By `from,to`: the reason of each kind of traffic of the cell. `null` where there are too many cells.
    whys: Option<BTreeMap<String, Vec<u32>>>,
}

#[derive(Serialize)]
struct Told {
    access: Access,
    traffic: Vec<Kind>,
}

#[derive(Serialize)]
struct Kind {
    text: String,
    verdict: &'static str,
    /// An example: protocol and port.
    proto: String,
    port: u16,
}

/// Makes the page.
///
/// # Errors
/// Where the matrix cannot be written as JSON.
pub fn page(matrix: &Matrix<'_>) -> serde_json::Result<String> {
    with_reasons(matrix, REASONS_MAX)
}

/// Makes the page, with reasons where there are at most so many cells.
pub(super) fn with_reasons(matrix: &Matrix<'_>, reasons_max: usize) -> serde_json::Result<String> {
    // `<` would end the script; in JSON it may be written as an escape everywhere that it can occur.
    let data = serde_json::to_string(&data(matrix, reasons_max))?.replace('<', "\\u003c");
    Ok(include_str!("page.html").replacen(DATA, &data, 1))
}

fn data<'a>(matrix: &'a Matrix<'_>, reasons_max: usize) -> Data<'a> {
    let (mut lines, mut columns) = (Numbers::default(), Numbers::default());
    // Cells stand row by row.
    let line = |cells: &[Cell]| {
        let mut line = vec![None; matrix.classes.len()];
        cells.iter().for_each(|cell| line[cell.to] = Some(cell.fares));
        line
    };
    let rows = matrix.cells.chunk_by(|a, b| a.from == b.from).map(|cells| (cells[0].from, lines.of(line(cells)))).collect();
    // Of a column only the lines that differ.
    let kinds = lines.in_order();
    let met = (0..matrix.classes.len()).filter(|class| kinds.iter().any(|line| line[*class].is_some()));
    let places = met.map(|class| (class, columns.of(kinds.iter().map(|line| line[class]).collect::<Vec<_>>()))).collect();
    let columns = columns.in_order();
    let lines = (0..kinds.len()).map(|line| columns.iter().map(|column| column[line].map_or(-1, i64::from)).collect()).collect();

    let mut reasons = Numbers::default();
    let whys = (matrix.cells.len() <= reasons_max).then(|| {
        let mut why = |cell| matrix.traffic(cell).into_iter().map(|traffic| reasons.of(traffic.why)).collect();
        matrix.cells.iter().map(|cell| (format!("{},{}", cell.from, cell.to), why(cell))).collect()
    });
    let fares = matrix.fares.iter().map(|fares| Told { access: access(fares), traffic: fares.iter().map(kind).collect() }).collect();
    Data { classes: &matrix.classes, fares, rows, columns: places, lines, reasons: reasons.in_order(), whys }
}

fn kind(fare: &Fare) -> Kind {
    let span = fare.spans.iter().find(|span| span.proto != proto::ICMP).unwrap_or(&fare.spans[0]);
    let proto = crate::sim::row::protocol(span.proto).into_owned();
    Kind { text: traffic(&fare.spans) + Nodes::words(fare.nodes), verdict: fare.verdict, proto, port: span.first }
}

/// Gives distinct things numbers from 0.
struct Numbers<T>(HashMap<T, u32>);

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Eq + Hash> Numbers<T> {
    fn of(&mut self, thing: T) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry(thing).or_insert(next)
    }

    fn in_order(self) -> Vec<T> {
        let mut things: Vec<(T, u32)> = self.0.into_iter().collect();
        things.sort_by_key(|(_, number)| *number);
        things.into_iter().map(|(thing, _)| thing).collect()
    }
}
