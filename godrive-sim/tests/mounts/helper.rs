//! Runs commands while threads of this process wait for mounts.
//!
//! A child of this process would begin with closing the files that the threads have open. Such a close asks the mount (FLUSH), which
//! answers late or not at all while its cluster does not run: the command that is to start the cluster would wait for that.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

/// A shell that was started before any file was open.
pub struct Helper {
    shell: Mutex<Shell>,
    /// What the last command wrote.
    output: PathBuf,
}

struct Shell {
    process: Child,
    /// None: it is to end.
    lines: Option<ChildStdin>,
    codes: BufReader<ChildStdout>,
}

impl Helper {
    pub fn start(folder: &Path) -> Self {
        let serve = r#"while read -r line; do eval "$line" </dev/null; echo $?; done"#;
        let mut command = Command::new("sh");
        command.args(["-c", serve]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("a shell");
        let lines = process.stdin.take();
        let codes = BufReader::new(process.stdout.take().expect("its output is piped"));
        Self { shell: Mutex::new(Shell { process, lines, codes }), output: folder.join("output") }
    }

    /// What it wrote, where it failed.
    pub fn run(&self, words: &[&str]) -> Result<(), String> {
        let quoted = |word: &str| format!("'{}'", word.replace('\'', r"'\''"));
        let line: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let output = quoted(self.output.to_str().expect("temporary paths are text"));
        let mut shell = self.shell.lock().expect("no thread panics with it");
        let code = shell.ask(&format!("{} >{output} 2>&1", line.join(" "))).expect("the shell answers");
        match code.trim() {
            "0" => Ok(()),
            code => Err(format!(
                "exit code {code}\n{}",
                std::fs::read_to_string(&self.output).unwrap_or_default()
            )),
        }
    }
}

impl Shell {
    fn ask(&mut self, line: &str) -> std::io::Result<String> {
        let mut lines = self.lines.as_ref().expect("it is open until the end");
        writeln!(lines, "{line}")?;
        let mut code = String::new();
        self.codes.read_line(&mut code)?;
        Ok(code)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.lines = None;
        self.process.wait().expect("a shell ends with its input");
    }
}
