//! What an API server and its controllers do, as far as a mesh can tell: objects, addresses, admission, Deployments, endpoints.

pub mod admission;
pub mod defaults;
pub mod deployments;
pub mod families;
pub mod load;
pub mod selector;
pub mod services;
pub mod tokens;
