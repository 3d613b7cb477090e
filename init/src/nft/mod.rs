//! nf_tables over netlink: one batch that the kernel takes whole or not at all, and the rules read back.

mod decode;
mod encode;
mod numbers;

pub(crate) use decode::rule as read_rule;
pub(crate) use encode::rule as write_rule;
pub(crate) use numbers::LOOPBACK_INDEX;

use std::{collections::BTreeMap, fmt};

use nix::errno::Errno;

use self::numbers::{attr, msg};
use crate::{
    error::Error,
    netlink::{Failure, Messages, Protocol, Socket, flags},
    rules::{Chain, Family, Rule, RuleSet, TABLE, Table},
    text::RuleText,
};

/// Puts the rules of `families` in force in the current namespace, in place of what our tables held. Returns the number of rules.
///
/// A pod's namespace is new nearly always, so the first try is a batch that only creates. The batch that replaces would do as
/// well, but a deleted table makes the kernel wait for all its processors (10 ms and more) when the socket is closed.
pub(crate) fn apply(rules: &RuleSet, families: &[Family]) -> Result<usize, Error> {
    let tables = || rules.tables().iter().filter(|table| families.contains(&table.family));
    let mut batch = Batch::begin();
    tables().for_each(|table| batch.create(table));
    match batch.commit() {
        Err(Error::Refused { errno: Errno::EEXIST, .. }) => {
            let mut batch = Batch::begin();
            tables().for_each(|table| batch.replace(table));
            batch.commit()?;
        }
        other => other?,
    }
    Ok(tables().map(Table::len).sum())
}

/// Takes our tables out of the current namespace.
pub(crate) fn clean(families: &[Family]) -> Result<(), Error> {
    let mut batch = Batch::begin();
    families.iter().for_each(|family| batch.remove(*family));
    batch.commit()
}

/// Reads our tables of the current namespace.
pub(crate) fn read(families: &[Family]) -> Result<RuleSet, Error> {
    let socket = open()?;
    let mut tables = Vec::new();
    for family in families.iter().copied() {
        let failed = |failure| step_error(failure, |_| Step { family, what: What::Read });
        let request = |kind: u16, table_attribute: u16| {
            let mut messages = Messages::default();
            messages.push(kind, flags::DUMP, &encode::family_header(family), |w| {
                w.text(table_attribute, TABLE);
            });
            messages
        };
        let chains = socket
            .dump(&request(msg::GET_CHAIN, attr::chain::TABLE), encode::FAMILY_HEADER, decode::chain)
            .map_err(failed)?;
        let rules = socket
            .dump(&request(msg::GET_RULE, attr::rule::TABLE), encode::FAMILY_HEADER, |reader| {
                decode::rule(family, reader)
            })
            .map_err(failed)?;
        let mut by_chain: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
        for (chain, rule) in rules {
            by_chain.entry(chain).or_default().push(rule);
        }
        let chains: Vec<Chain> = chains
            .into_iter()
            .map(|mut chain| {
                chain.rules = by_chain.remove(chain.name.as_ref()).unwrap_or_default();
                chain
            })
            .collect();
        if !chains.is_empty() {
            tables.push(Table { family, chains });
        }
    }
    Ok(RuleSet::from_tables(tables))
}

/// A chain of any table, by name.
pub(crate) struct NamedChain {
    pub(crate) table: String,
    pub(crate) name: String,
}

/// The names of all chains of the current namespace.
pub(crate) fn chains(families: &[Family]) -> Result<Vec<NamedChain>, Error> {
    let socket = open()?;
    let mut all = Vec::new();
    for family in families.iter().copied() {
        let mut request = Messages::default();
        request.push(msg::GET_CHAIN, flags::DUMP, &encode::family_header(family), |_| {});
        let found = socket
            .dump(&request, encode::FAMILY_HEADER, decode::named_chain)
            .map_err(|failure| step_error(failure, |_| Step { family, what: What::Read }))?;
        all.extend(found);
    }
    Ok(all)
}

fn open() -> Result<Socket, Error> {
    Socket::open(Protocol::Netfilter).map_err(|errno| match errno {
        Errno::EPROTONOSUPPORT => Error::NoNetfilter,
        other => Error::Netlink(other.into()),
    })
}

/// What one message of a batch does: named in errors.
pub(crate) struct Step {
    family: Family,
    what: What,
}

enum What {
    Begin,
    Table,
    Chain(String),
    Rule(String),
    Read,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = format_args!("table {} {TABLE}", self.family);
        match &self.what {
            What::Begin => f.write_str("the batch"),
            What::Table => write!(f, "{table}"),
            What::Chain(name) => write!(f, "chain {name} of {table}"),
            What::Rule(text) => write!(f, "rule `{text}` of {table}"),
            What::Read => write!(f, "reading {table}"),
        }
    }
}

/// Messages that take effect together.
struct Batch {
    messages: Messages,
    steps: Vec<Described>,
}

/// What a message is about, cheap enough to note for each; words only if it fails.
enum Described {
    Mark,
    Table(Family),
    Chain(Family, String),
    Rule(Family, Rule),
}

impl Batch {
    fn begin() -> Self {
        let mut batch = Self { messages: Messages::default(), steps: Vec::new() };
        batch.mark(msg::BATCH_BEGIN);
        batch
    }

    fn mark(&mut self, kind: u16) {
        self.messages.push(kind, 0, &encode::BATCH_HEADER, |_| {});
        self.steps.push(Described::Mark);
    }

    /// Fails if there is such a table.
    fn create(&mut self, table: &Table) {
        self.table(msg::NEW_TABLE, flags::CREATE | flags::EXCLUSIVE, table.family);
        self.content(table);
    }

    /// Add, delete, add: whatever was there is gone and nothing fails for want of it.
    fn replace(&mut self, table: &Table) {
        self.remove(table.family);
        self.table(msg::NEW_TABLE, flags::CREATE, table.family);
        self.content(table);
    }

    fn content(&mut self, table: &Table) {
        let family = table.family;
        for chain in &table.chains {
            self.messages
                .push(msg::NEW_CHAIN, flags::CREATE, &encode::family_header(family), |w| encode::chain(chain, w));
            self.steps.push(Described::Chain(family, chain.name.to_string()));
        }
        for chain in &table.chains {
            for rule in &chain.rules {
                self.messages.push(msg::NEW_RULE, flags::CREATE | flags::APPEND, &encode::family_header(family), |w| {
                    encode::rule(family, &chain.name, rule, w)
                });
                self.steps.push(Described::Rule(family, rule.clone()));
            }
        }
    }

    fn remove(&mut self, family: Family) {
        self.table(msg::NEW_TABLE, flags::CREATE, family);
        self.table(msg::DELETE_TABLE, 0, family);
    }

    fn table(&mut self, kind: u16, flags: u16, family: Family) {
        self.messages.push(kind, flags, &encode::family_header(family), |w| {
            w.text(attr::table::NAME, TABLE);
        });
        self.steps.push(Described::Table(family));
    }

    /// The answers of a batch come in the order of its messages, so the last one's acknowledgement ends them.
    fn commit(mut self) -> Result<(), Error> {
        let last = self.messages.count().saturating_sub(1);
        self.messages.acknowledge_last();
        self.mark(msg::BATCH_END);
        let socket = open()?;
        socket.transact(&self.messages, last).map_err(|failure| step_error(failure, |at| self.step(at)))
    }

    fn step(&self, sequence: u32) -> Step {
        let at = usize::try_from(sequence).unwrap_or(usize::MAX);
        let (family, what) = match self.steps.get(at) {
            None | Some(Described::Mark) => (Family::V4, What::Begin),
            Some(Described::Table(family)) => (*family, What::Table),
            Some(Described::Chain(family, name)) => (*family, What::Chain(name.clone())),
            Some(Described::Rule(family, rule)) => {
                (*family, What::Rule(RuleText { rule, family: *family, indent: "" }.to_string()))
            }
        };
        Step { family, what }
    }
}

fn step_error(failure: Failure, step: impl FnOnce(u32) -> Step) -> Error {
    match failure {
        Failure::Io(source) => Error::Netlink(source),
        Failure::Refused(refusal) => {
            let step = step(refusal.sequence);
            match refusal.errno {
                Errno::EPERM | Errno::EACCES => Error::Permission,
                Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT => {
                    Error::Unsupported { step: step.to_string(), errno: refusal.errno, text: refusal.text }
                }
                errno => Error::Refused { step: step.to_string(), errno, text: refusal.text },
            }
        }
    }
}
