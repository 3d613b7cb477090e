//! A narrow door for the fuzz targets: what the netlink decoder makes of bytes.

use weir_mesh::CaptureSettings;

use crate::{
    netlink::attributes::{Reader, Writer},
    nft,
    rules::{Family, Rule, RuleSet},
};

/// A rule, behind the name of its chain.
pub type Placed = (String, Rule);

/// The rule that these attributes are read as, and what that rule is read as once it is written again.
pub fn reread(family: Family, attributes: &[u8]) -> Option<(Placed, Option<Placed>)> {
    let (chain, rule) = nft::read_rule(family, Reader::new(attributes))?;
    let mut written = Vec::new();
    nft::write_rule(family, &chain, &rule, &mut Writer::new(&mut written));
    let again = nft::read_rule(family, Reader::new(&written));
    Some(((chain, rule), again))
}

/// Attributes of every rule that these settings make.
pub fn written(settings: &CaptureSettings) -> Vec<(Family, Vec<u8>)> {
    let mut all = Vec::new();
    for table in RuleSet::new(settings).tables() {
        for chain in &table.chains {
            for rule in &chain.rules {
                let mut written = Vec::new();
                nft::write_rule(table.family, &chain.name, rule, &mut Writer::new(&mut written));
                all.push((table.family, written));
            }
        }
    }
    all
}
