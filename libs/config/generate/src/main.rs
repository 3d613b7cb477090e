//! `make generate`

fn main() -> anyhow::Result<()> {
    let module = weir_config_generate::module()?;
    let text = weir_config_generate::format(&weir_config_generate::generate(&module)?)?;
    std::fs::write(weir_config_generate::GENERATED, text)?;
    Ok(())
}
