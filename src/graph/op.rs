//! Operators: a kind, the domain that defines it, and attributes.

use std::fmt;
use std::sync::Arc;

use super::Graph;
use crate::tensor::DType;

/// Who defines an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Domain {
    /// The ONNX standard.
    Onnx,
    /// ONNX Runtime's own operators.
    Microsoft,
}

impl Domain {
    /// The name in a file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Onnx => "",
            Self::Microsoft => "com.microsoft",
        }
    }
}

/// A constant that belongs to an operator.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// One integer.
    Int(i64),
    /// One float.
    Float(f32),
    /// Several integers.
    Ints(Vec<i64>),
    /// An element type (written as ONNX's number for it).
    Type(DType),
    /// A string (ONNX's `STRING`).
    Text(&'static str),
    /// What an operator runs again and again.
    Graph(Body),
}

/// The graph that an operator such as `Scan` runs: it sees its own inputs and constants alone.
#[derive(Clone, Debug)]
pub struct Body(Arc<Graph>);

impl Body {
    /// A body that is this graph.
    pub fn new(graph: Graph) -> Self {
        Self(Arc::new(graph))
    }

    /// The graph that is run.
    pub fn graph(&self) -> &Graph {
        &self.0
    }
}

/// The same body, not an equal one: graphs hold weights, which are not compared.
impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(i) => write!(f, "{i}"),
            Self::Float(x) => write!(f, "{x:?}"),
            Self::Ints(v) => write!(f, "{v:?}"),
            Self::Type(t) => write!(f, "{t}"),
            Self::Text(t) => write!(f, "{t:?}"),
            Self::Graph(body) => write!(f, "{{ {} }}", body.graph().to_string().trim_end().replace('\n', "; ")),
        }
    }
}

/// An operator with its attributes.
#[derive(Clone, Debug, PartialEq)]
pub struct Op {
    /// ONNX's name of the operator, such as `MatMul`.
    pub kind: &'static str,
    /// Who defines the operator.
    pub domain: Domain,
    /// Attributes by name, in the order in which they are written.
    pub attributes: Vec<(&'static str, Attribute)>,
}

impl Op {
    /// A standard operator without attributes.
    pub fn new(kind: &'static str) -> Self {
        Self { kind, domain: Domain::Onnx, attributes: Vec::new() }
    }

    /// One of ONNX Runtime's own operators.
    pub fn microsoft(kind: &'static str) -> Self {
        Self { kind, domain: Domain::Microsoft, attributes: Vec::new() }
    }

    /// Adds an integer attribute.
    #[must_use]
    pub fn int(self, name: &'static str, value: i64) -> Self {
        self.with(name, Attribute::Int(value))
    }

    /// Adds a float attribute.
    #[must_use]
    pub fn float(self, name: &'static str, value: f32) -> Self {
        self.with(name, Attribute::Float(value))
    }

    /// Adds an attribute of several integers.
    #[must_use]
    pub fn ints(self, name: &'static str, value: &[i64]) -> Self {
        self.with(name, Attribute::Ints(value.to_vec()))
    }

    /// Adds an attribute of any kind.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: Attribute) -> Self {
        self.attributes.push((name, value));
        self
    }

    /// The attribute of that name.
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// The integer attribute of that name, or `default`.
    pub fn get_int(&self, name: &str, default: i64) -> i64 {
        match self.get(name) {
            Some(Attribute::Int(i)) => *i,
            _ => default,
        }
    }

    /// The integers of the attribute of that name; empty when there is none.
    pub fn get_ints(&self, name: &str) -> &[i64] {
        match self.get(name) {
            Some(Attribute::Ints(v)) => v,
            _ => &[],
        }
    }
}
