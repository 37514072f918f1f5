//! Training from the artifacts' files alone, in plain sessions of ONNX Runtime.

use std::collections::BTreeMap;
use std::path::Path;

use brain_adapter::runtime::Session;
use brain_adapter::tensor::Tensor;
use brain_adapter::train::Parameters;
use brain_adapter::train::artifacts::{Artifacts, parameters_of};
use support::common;

use super::{ACCUMULATE, ONE_THREAD, RATE, STEPS, Trained, dense, micro, script};

fn open(path: &Path) -> Session {
    Session::open(common::runtime(), path, &ONE_THREAD).unwrap()
}

fn run_all(session: &mut Session, inputs: &BTreeMap<String, Tensor>, outputs: &[String]) -> Vec<Tensor> {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, t)| (name.as_str(), t)).collect();
    session.run(&inputs, &outputs.iter().map(String::as_str).collect::<Vec<_>>()).unwrap()
}

/// The training and the optimizer's model as plain sessions take them: numbers and tensors as inputs of their own.
fn plain_models(python: &Path, folder: &Path, parameters: usize) -> (Session, Session) {
    let [training, optimizer] = ["plain_training.onnx", "plain_optimizer.onnx"].map(|name| folder.join(name));
    script(python, "ort_training/numbers_in_front.py", &[&folder.join("training_model.onnx"), &training]);
    let (from, count) = (folder.join("optimizer_model.onnx"), parameters.to_string());
    script(python, "ort_training/tensors_in_front.py", &[&from, Path::new(&count), &optimizer]);
    (open(&training), open(&optimizer))
}

/// One update by the optimizer's model, of the parameters and of the moments of each.
fn update(
    optimizer: &mut Session,
    names: &[String],
    parameters: &mut Parameters,
    moments: &mut [[Tensor; 2]],
    gradients: &[Tensor],
    step: i64,
) {
    let mut inputs = BTreeMap::from([
        ("learning_rate".to_owned(), Tensor::f32(&[1], vec![RATE]).unwrap()),
        ("step".to_owned(), Tensor::i64(&[1], vec![step]).unwrap()),
    ]);
    let lists = ["params", "first_order_moments", "second_order_moments"];
    for (i, name) in names.iter().enumerate() {
        let values = [&parameters[name], &moments[i][0], &moments[i][1]];
        inputs.extend(lists.iter().zip(values).map(|(list, t)| (format!("{list}.{i}"), t.clone())));
        inputs.insert(format!("gradients.{i}"), gradients[i].clone());
    }
    for (k, list) in lists.iter().enumerate() {
        let outputs: Vec<String> = (0..names.len()).map(|i| format!("{list}.out.{i}")).collect();
        for (i, t) in run_all(optimizer, &inputs, &outputs).into_iter().enumerate() {
            match k {
                0 => drop(parameters.insert(names[i].clone(), t)),
                k => moments[i][k - 1] = t,
            }
        }
    }
}

/// Three steps from the files alone, in plain sessions. `folder` is a copy that may be written to.
pub fn with_plain_sessions(
    python: &Path,
    folder: &Path,
    artifacts: &Artifacts,
    feeds: &BTreeMap<String, Tensor>,
) -> Trained {
    let state = artifacts.state().unwrap();
    let names: Vec<String> = parameters_of(&state).into_iter().filter(|p| p.trained).map(|p| p.name).collect();
    let (mut training, mut optimizer) = plain_models(python, folder, names.len());
    let mut parameters = dense(artifacts);
    for (name, t) in state.frozen.iter().filter(|(n, _)| n.ends_with("num_batches_tracked")) {
        let value = i64::from_le_bytes(*t.bytes().unwrap().first_chunk().unwrap());
        parameters.insert(name.clone(), Tensor::i64(&[], vec![value]).unwrap());
    }
    let zeros = |name: &String| {
        Tensor::f32(parameters[name].shape(), vec![0.0; parameters[name].shape().iter().product()]).unwrap()
    };
    let mut both: Vec<[Tensor; 2]> = names.iter().map(|n| [zeros(n), zeros(n)]).collect();
    let mut sum: Vec<Tensor> = names.iter().map(zeros).collect();
    let outputs: Vec<String> =
        std::iter::once("loss".into()).chain(names.iter().map(|n| format!("accumulated.{n}_grad"))).collect();
    let (mut losses, mut first) = (Vec::new(), Parameters::new());
    for step in 0..STEPS {
        let mut loss = 0.0;
        for j in 0..ACCUMULATE {
            let mut inputs = micro(feeds, step * ACCUMULATE + j);
            inputs.extend(parameters.clone());
            inputs.extend(names.iter().zip(&sum).map(|(n, t)| (format!("{n}_grad.accumulation.buffer"), t.clone())));
            inputs.insert("reset".into(), Tensor::i64(&[1], vec![i64::from(j == 0)]).unwrap());
            let mut found = run_all(&mut training, &inputs, &outputs);
            loss += found.remove(0).as_f32().unwrap()[0] / ACCUMULATE as f32;
            sum = found;
            if step + j == 0 {
                first = names.iter().cloned().zip(sum.clone()).collect();
            }
        }
        losses.push(loss);
        update(&mut optimizer, &names, &mut parameters, &mut both, &sum, step as i64 + 1);
    }
    let mut inputs = micro(feeds, 0);
    inputs.extend(parameters.clone());
    let eval = run_all(&mut open(&folder.join("eval_model.onnx")), &inputs, &["loss".into()]);
    parameters.retain(|name, _| !name.ends_with("num_batches_tracked"));
    Trained { losses, eval_loss: eval[0].as_f32().unwrap()[0], first, parameters, steps: Vec::new() }
}
