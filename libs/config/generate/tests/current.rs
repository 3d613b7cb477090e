//! What is checked in is what the generator makes.

#![allow(clippy::unwrap_used)]

#[test]
fn the_checked_in_types_are_those_of_the_definitions() {
    // Where there is no Go, or the module can not be fetched, there is nothing to compare with.
    let module = match weir_config_generate::module() {
        Ok(module) => module,
        Err(error) => return println!("skipped: {error:#}"),
    };
    let made = weir_config_generate::format(&weir_config_generate::generate(&module).unwrap()).unwrap();
    let there = std::fs::read_to_string(weir_config_generate::GENERATED).unwrap();
    assert!(made == there, "the types are not those of the definitions: run `make generate`");
}
