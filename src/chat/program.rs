//! A template as instructions whose operators are Python's.
//!
//! minijinja parses the template and runs its control flow. Its operators follow Jinja's manual;
//! templates are written against Python (`'%d' % n`, `d.items`, `xs[::-1]`, errors for unlike
//! types), so each operator instruction becomes a call of a function of [`python`](super::python).

use std::collections::BTreeMap;

use minijinja::{
    AutoEscape, Environment, Error, Value,
    machinery::{CodeGenerator, Instruction, Instructions, eval, make_string_output, parse},
    syntax::SyntaxConfig,
    value::ValueKind,
};
use self_cell::self_cell;

use super::{error::ChatError, python};

const NAME: &str = "chat template";
/// Longest template in bytes; the longest published ones have about 20,000.
const MAX_SOURCE: usize = 256 << 10;

/// Instructions that borrow names from the template's source.
struct Compiled<'source> {
    main: Instructions<'source>,
    blocks: BTreeMap<&'source str, Instructions<'source>>,
}

self_cell!(
    /// A compiled template.
    pub struct Program {
        owner: Box<str>,
        #[covariant]
        dependent: Compiled,
    }
);

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program({} bytes of source)", self.borrow_owner().len())
    }
}

impl Program {
    /// Compiles `source` with the settings of `transformers`: `trim_blocks`, `lstrip_blocks`, loop
    /// controls, `{% generation %}`. Refuses what cannot be rendered as `transformers` renders it.
    pub fn compile(source: &str) -> Result<Self, ChatError> {
        if source.len() > MAX_SOURCE {
            let size = source.len();
            return Err(ChatError::Syntax(format!(
                "it has {size} bytes, expected at most {MAX_SOURCE}"
            )));
        }
        let source = plain_generation_blocks(&source.replace("\r\n", "\n").replace('\r', "\n"));
        Self::try_new(source.into_boxed_str(), |source| {
            let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
            let syntax = syntax.map_err(|e| ChatError::Syntax(e.to_string()))?;
            let tree = parse(source, NAME, syntax).map_err(|e| ChatError::Syntax(e.to_string()))?;
            let mut generator = CodeGenerator::new(NAME, source);
            generator.compile_stmt(&tree);
            let (main, blocks) = generator.finish();
            let blocks = blocks
                .into_iter()
                .map(|(name, block)| Ok((name, with_python_operators(&block)?)))
                .collect::<Result<_, ChatError>>()?;
            Ok(Compiled { main: with_python_operators(&main)?, blocks })
        })
    }

    /// The template as it was compiled.
    pub fn source(&self) -> &str {
        self.borrow_owner()
    }

    /// Runs the template with the variables of `root`.
    pub fn run(&self, environment: &Environment<'static>, root: Value) -> Result<String, Error> {
        let Compiled { main, blocks } = self.borrow_dependent();
        let mut text = String::new();
        let mut output = make_string_output(&mut text);
        eval(environment, main, root, blocks, &mut output, AutoEscape::None)?;
        drop(output);
        Ok(text)
    }
}

/// Rewrites operators as calls and moves jump targets to where their instructions are now.
fn with_python_operators<'source>(
    old: &Instructions<'source>,
) -> Result<Instructions<'source>, ChatError> {
    let instructions = || (0u32..).map_while(|index| Some((index, old.get(index)?)));
    refuse_unsupported(instructions().map(|(_, instruction)| instruction))?;
    let mut starts = vec![0];
    let mut end = 0;
    for (_, instruction) in instructions() {
        end += replacement(instruction).len() as u32;
        starts.push(end);
    }
    let mut new = Instructions::new(old.name(), old.source());
    for (index, instruction) in instructions() {
        let line = old.get_line(index).and_then(|line| u16::try_from(line).ok()).unwrap_or(0);
        for mut instruction in replacement(instruction) {
            relocate(&mut instruction, &starts);
            new.add_with_line(instruction, line);
        }
    }
    Ok(new)
}

/// The instructions that do what `instruction` does in Python; the stack is the same afterwards.
fn replacement<'source>(instruction: &Instruction<'source>) -> Vec<Instruction<'source>> {
    use Instruction as I;
    let call = |name, arguments| I::CallFunction(name, Some(arguments));
    let named = |name: &str, function| vec![I::LoadConst(Value::from(name)), call(function, 2)];
    match instruction {
        // Printed like values, so that all output passes the formatter and its bound.
        I::EmitRaw(text) => vec![I::LoadConst(Value::from(*text)), I::Emit],
        I::GetAttr(name) => named(name, "."),
        I::GetItem => vec![call("[]", 2)],
        I::Slice => vec![call("[:]", 4)],
        I::Add => vec![call("+", 2)],
        I::Sub => vec![call("-", 2)],
        I::Mul => vec![call("*", 2)],
        I::Div => vec![call("/", 2)],
        I::IntDiv => vec![call("//", 2)],
        I::Rem => vec![call("%", 2)],
        I::Pow => vec![call("**", 2)],
        I::Neg => vec![call("negative", 1)],
        I::StringConcat => vec![call("~", 2)],
        I::Eq => vec![call("==", 2)],
        I::Ne => vec![call("!=", 2)],
        I::Lt => vec![call("<", 2)],
        I::Lte => vec![call("<=", 2)],
        I::Gt => vec![call(">", 2)],
        I::Gte => vec![call(">=", 2)],
        I::In => vec![call("in", 2)],
        I::PushLoop(_) | I::UnpackList(_) => vec![call("iterate", 1), instruction.clone()],
        I::SetAttr(_) => vec![I::Swap, call("assign", 1), I::Swap, instruction.clone()],
        I::BuildList(_) | I::BuildMap(_) | I::BuildTuple(_) => {
            vec![instruction.clone(), call("assign", 1)]
        }
        // Sums of lists that were folded when compiling.
        I::LoadConst(value) if value.kind() == ValueKind::Iterable => {
            vec![instruction.clone(), call("iterate", 1)]
        }
        other => vec![other.clone()],
    }
}

fn relocate(instruction: &mut Instruction<'_>, starts: &[u32]) {
    use Instruction as I;
    let target = match instruction {
        I::Iterate(target)
        | I::Jump(target)
        | I::JumpIfFalse(target)
        | I::JumpIfFalseOrPop(target)
        | I::JumpIfTrueOrPop(target)
        | I::BuildMacro(_, target, _) => target,
        _ => return,
    };
    if let Some(start) = starts.get(*target as usize) {
        *target = *start;
    }
}

/// Refuses features of Jinja that this renderer does not implement.
fn refuse_unsupported<'a, 'source: 'a>(
    instructions: impl Iterator<Item = &'a Instruction<'source>> + Clone,
) -> Result<(), ChatError> {
    use Instruction as I;
    let assigned = |name: &str| {
        instructions
            .clone()
            .any(|instruction| matches!(instruction, I::StoreLocal(n) if *n == name))
    };
    for instruction in instructions.clone() {
        let unsupported = match instruction {
            I::ApplyFilter(name, ..) if python::FILTERS_LEFT_OUT.contains(name) => {
                format!("filter {name}")
            }
            I::CallMethod(name, _) if python::METHODS_LEFT_OUT.contains(name) => {
                format!("method {name}")
            }
            I::Lookup(name) | I::CallFunction(name, _)
                if python::VARIABLES_LEFT_OUT.contains(name) && !assigned(name) =>
            {
                format!("variable {name}")
            }
            I::Include(_) | I::LoadBlocks | I::ExportLocals => {
                "loading of other templates (include, import, extends)".to_owned()
            }
            I::PushAutoEscape => "autoescape".to_owned(),
            _ => continue,
        };
        return Err(ChatError::Unsupported(unsupported));
    }
    Ok(())
}

/// `{% generation %}` marks the tokens that training learns from. In a prompt it only opens a
/// scope, so it becomes a tag that Jinja knows.
fn plain_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (before, tag_on) = rest.split_at(start);
        let (tag, after) = tag_on.split_at(length + 2);
        out.push_str(before);
        let word = tag.trim_matches(|c: char| c.is_whitespace() || "{%-+}".contains(c));
        match word {
            "generation" => out.push_str(&tag.replacen(word, "with", 1)),
            "endgeneration" => out.push_str(&tag.replacen(word, "endwith", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
