//! The matrix as one HTML page that needs nothing else: a heat map, a filter, and the reasons of the cell that is clicked.

use super::Matrix;

/// Where the data goes.
const DATA: &str = "/*DATA*/";

/// Makes the page.
///
/// # Errors
/// Where the matrix cannot be written as JSON.
pub fn page(matrix: &Matrix<'_>) -> serde_json::Result<String> {
    // `<` would end the script; in JSON it may be written as an escape everywhere that it can occur.
    let data = serde_json::to_string(matrix)?.replace('<', "\\u003c");
    Ok(include_str!("page.html").replacen(DATA, &data, 1))
}
