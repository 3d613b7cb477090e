//! The mesh on a real Kubernetes: a file for each subject, a cluster for each file.

mod callers;
mod canary;
mod chart;
mod closed;
mod cluster;
mod continuity;
mod flagger;
mod injection;
mod inspect;
mod life;
mod ready;
mod refusals;
mod rollout;
mod routes;
mod traffic;

fn main() -> std::process::ExitCode {
    // The longest first: so no lane is left with one when the others are done.
    weir_cluster::lanes::run(&[
        continuity::SUITE,
        life::SUITE,
        chart::SUITE,
        closed::SUITE,
        traffic::SUITE,
        rollout::SUITE,
        flagger::SUITE,
        canary::SUITE,
        routes::SUITE,
        injection::SUITE,
        refusals::SUITE,
        inspect::SUITE,
        cluster::SUITE,
        ready::SUITE,
    ])
}
