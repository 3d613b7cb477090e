//! The user's resources: strict parsing into one routing model.
