//! Kubernetes objects from files, folders and stdin: read, checked, defaulted.

pub mod objects;
mod selector;
