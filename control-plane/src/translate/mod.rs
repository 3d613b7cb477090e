//! The world to Envoy's resources. One function for each kind, all pure: a name and the world in, a message out.

mod access;
mod cluster;
mod encode;
mod endpoints;
mod key;
mod listener;
mod places;
mod route;
mod upstream;
mod view;

pub use encode::version;
pub use key::{Key, Of};
pub(crate) use route::requests_of;
pub use view::{View, Views};

use weir_config::model::{Service, Workload};
use weir_mesh::{Identity, TrustDomain};
use weir_xds::{Kind, Resource};

use crate::world::World;

/// What all resources of a mesh have in common.
#[derive(Debug, Clone)]
pub struct Mesh {
    /// Trust domain of the identities.
    pub trust_domain: TrustDomain,
    /// DNS suffix of Services.
    pub cluster_domain: String,
}

impl Mesh {
    pub(crate) fn host(&self, service: &Service) -> String {
        service.host(&self.cluster_domain)
    }

    pub(crate) fn identity(&self, pod: &Workload) -> Option<Identity> {
        Identity::new(&self.trust_domain, &pod.name.namespace, &pod.service_account).ok()
    }
}

/// The resource that a key stands for, for callers with this view; `None` where there is none now.
pub fn resource(mesh: &Mesh, world: &World, key: &Key, view: &View) -> Option<Resource> {
    let name = key.name.as_ref();
    let of = Of::parse(mesh, key)?;
    let body = match key.kind {
        Kind::Listener => listener::listener(mesh, world, name, &of, view)?,
        Kind::Route => route::configuration(mesh, world, name, &of, view)?,
        Kind::Cluster => cluster::cluster(mesh, world, name, &of, view)?,
        Kind::Endpoints => endpoints::assignment(mesh, world, name, &of, view)?,
    };
    Some(Resource { name: name.to_owned(), version: version(&body), body: body.into() })
}
