//! A world out of manifests, without a cluster.

use std::collections::HashSet;

use weir_control::{
    source::Item,
    translate::Mesh,
    world::{Subject, World},
};

pub struct Shop {
    pub world: World,
    pub mesh: Mesh,
}

impl Shop {
    pub fn new(texts: &[&str]) -> Self {
        let mesh = Mesh { trust_domain: "cluster.local".parse().unwrap(), cluster_domain: "cluster.local".into() };
        let mut shop = Self { world: World::default(), mesh };
        for text in texts {
            shop.apply(text);
        }
        shop
    }

    pub fn apply(&mut self, text: &str) -> HashSet<Subject> {
        let manifests = weir_config::parse("r.yaml", text).unwrap_or_else(|problems| panic!("{text}\n{problems:#?}"));
        let mut touched = HashSet::new();
        for item in manifests.iter().filter_map(|manifest| Item::of(&manifest.object)) {
            self.world.apply(item, &mut touched);
        }
        touched
    }
}
