use rhai::{Engine, FuncMetadata, Module, Shared};

/// A part of what scripts can use: one heading of the reference, one module of all engines.
#[derive(Clone)]
pub(in crate::script) struct Section {
    pub place: Place,
    pub module: Shared<Module>,
}

/// How scripts come to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::script) enum Place {
    /// `name::function()`.
    Namespace(&'static str),
    /// Properties and methods of a value.
    Type(&'static str),
    /// Functions without a namespace, under a heading of the reference.
    Words(&'static str),
}

impl Section {
    pub fn namespace(name: &'static str, mut module: Module) -> Self {
        // An engine copies a module that lacks these.
        module.set_id(name);
        module.build_index();
        Self { place: Place::Namespace(name), module: module.into() }
    }

    pub fn of_type(name: &'static str, module: Module) -> Self {
        Self { place: Place::Type(name), module: module.into() }
    }

    pub fn words(heading: &'static str, module: Module) -> Self {
        Self { place: Place::Words(heading), module: module.into() }
    }

    pub fn register(self, engine: &mut Engine) {
        match self.place {
            Place::Namespace(name) => drop(engine.register_static_module(name, self.module)),
            Place::Type(_) | Place::Words(_) => drop(engine.register_global_module(self.module)),
        }
    }

    /// Every function with its comments.
    pub fn functions(&self) -> Vec<FuncMetadata> {
        let mut engine = Engine::new_raw();
        engine.register_global_module(Shared::clone(&self.module));
        engine.collect_fn_metadata(None, |function| Some(function.metadata.clone()), false)
    }
}

#[cfg(test)]
mod tests {
    use super::super::sections;

    #[test]
    fn everything_is_documented_and_its_parameters_have_names() {
        let mut wrong = Vec::new();
        let mut seen = 0;
        for section in sections() {
            let place = section.place;
            if section.module.doc().is_empty() {
                wrong.push(format!("{place:?} does not say what it is"));
            }
            for function in section.functions() {
                seen += 1;
                let first = function.comments.first().map_or("", |comment| comment.trim_start_matches('/').trim());
                let sentence = first.starts_with(|c: char| c.is_uppercase() || c.is_numeric() || c == '`' || c == '"');
                if !sentence || function.params_info.len() < function.num_params {
                    wrong.push(format!("{place:?}: {}/{}: {first:?}", function.name, function.num_params));
                }
            }
        }
        assert!(seen > 40, "the functions are found");
        assert!(wrong.is_empty(), "write /// comments above these:\n{}", wrong.join("\n"));
    }
}
