//! What `make cluster` and `make cluster-down` do.

use anyhow::Result;

use crate::{guard, images::APP, launch, layout::Layout, options::Options};

/// Starts a cluster that stays, and says how to use and to end it.
///
/// # Errors
/// When it does not start.
pub fn up(options: &Options) -> Result<()> {
    let mut launched = launch::start(options)?;
    launch::let_go(&mut launched.guard, &launched.layout)?;
    let layout = &launched.layout;
    let seconds = std::time::Duration::from_millis(launched.facts.took_ms).as_secs_f64();
    println!("cluster up in {seconds:.1} s: {} nodes; the image {APP} is on them", options.nodes);
    println!("  export KUBECONFIG={}", layout.kubeconfig().display());
    println!("  export PATH={}:$PATH      # kubectl and helm of the right version", launched.facts.tools.display());
    for (number, entrance) in (1..).zip(&launched.facts.nodes) {
        println!("  nsenter {}      # onto node{number}", entrance.join(" "));
    }
    println!("  logs of its programs: {}", layout.logs().display());
    println!("  make cluster-down      # ends it, without a trace");
    Ok(())
}

/// Ends every cluster that a person started, and removes what killed ones left. Those of running tests are left alone, unless `all`.
///
/// # Errors
/// When one does not end.
pub fn down(all: bool) -> Result<()> {
    let mut ended = 0;
    for layout in Layout::all() {
        if layout.is_alive() && (all || !layout.is_attached()) {
            guard::end(&layout)?;
            ended += 1;
        }
    }
    let swept = guard::sweep()?;
    println!("{ended} cluster(s) ended, {swept} already dead removed");
    Ok(())
}
