//! Discovery, translation and certificates.
