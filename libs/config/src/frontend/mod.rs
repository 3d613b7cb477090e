//! From the users' kinds to the routing model. Each front end reads its own kinds; none knows another.

pub mod gateway;
pub mod kubernetes;
pub mod policy;
pub mod security;
