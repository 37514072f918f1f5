//! The report in English: some of the facts, in varying words and order.
//!
//! It states nothing about the images, and no diagnosis: those are for the model to infer. Facts are left out at
//! random, whatever their value. Grades are written in words, since a small language model that was never trained still
//! tells "severe" from "no", but hardly 21 from 27.

use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::random::{chance, one_of};
use super::subject::Facts;

/// First line of every report.
pub const HEADING: &str = "SIMULATED REPORT.";

/// The text of a report about `facts`.
pub fn write(facts: &Facts, rng: &mut ChaCha8Rng) -> String {
    let person = person(facts, rng);
    let mut sentences: Vec<String> = [
        (0.06, complaint as fn(&Facts, &mut ChaCha8Rng) -> String),
        (0.10, mmse),
        (0.20, cdr),
        (0.20, help),
        (0.60, apoe),
    ]
    .into_iter()
    .filter_map(|(missing, sentence)| if chance(rng, missing) { None } else { Some(sentence(facts, rng)) })
    .collect();
    sentences.shuffle(rng);
    let closing = one_of(rng, &["MRI without contrast.", "MRI of the brain.", "Follow-up MRI.", "MRI, first study."]);
    format!("{HEADING}\n{person} {} {closing}\n", sentences.join(" ")).replace("  ", " ")
}

/// Age, sex and education, as far as they are known.
fn person(facts: &Facts, rng: &mut ChaCha8Rng) -> String {
    let noun = match (chance(rng, 0.05), facts.female) {
        (true, _) => "patient",
        (false, true) => one_of(rng, &["woman", "female patient"]),
        (false, false) => one_of(rng, &["man", "male patient"]),
    };
    let age = if chance(rng, 0.05) { "Age not given".to_owned() } else { format!("{}-year-old", facts.age) };
    let comma = if age.ends_with("given") { ", " } else { " " };
    let education = match chance(rng, 0.5) {
        true => String::new(),
        false => format!(", {} years of education", facts.education),
    };
    format!("{age}{comma}{noun}{education}.")
}

fn complaint(facts: &Facts, rng: &mut ChaCha8Rng) -> String {
    let months = facts.months;
    match facts.complaint {
        0 => one_of(
            rng,
            &["No memory complaints.", "Without cognitive complaints.", "No complaints; memory is normal for age."],
        )
        .to_owned(),
        grade => {
            let grade = ["", "mild", "moderate", "severe"][grade];
            let text = match one_of(rng, &["complaints", "impairment", "loss"]) {
                "complaints" => format!("{grade} memory complaints for {months} months."),
                "impairment" => format!("{grade} impairment of memory for {months} months, progressive."),
                _ => format!("{grade} loss of memory over {months} months."),
            };
            capital(&text)
        }
    }
}

fn mmse(facts: &Facts, rng: &mut ChaCha8Rng) -> String {
    let score = facts.mmse;
    let grade = match score {
        28.. => "normal",
        25..=27 => "mild impairment",
        20..=24 => "moderate impairment",
        _ => "severe impairment",
    };
    match one_of(rng, &["words", "words", "brackets", "number"]) {
        "words" => format!("MMSE {score}/30: {grade}."),
        "brackets" => format!("MMSE score {score}/30 ({grade})."),
        _ => format!("MMSE {score}/30."),
    }
}

fn cdr(facts: &Facts, rng: &mut ChaCha8Rng) -> String {
    let grade = match facts.cdr_halves {
        0 => "no impairment",
        1 => "very mild",
        2 => "mild to moderate",
        _ => "moderate to severe",
    };
    match chance(rng, 0.7) {
        true => format!("CDR {}, {grade}.", facts.cdr()),
        false => format!("CDR {}.", facts.cdr()),
    }
}

fn help(facts: &Facts, rng: &mut ChaCha8Rng) -> String {
    let choices: [[&str; 2]; 3] = [
        ["Daily life without help.", "No help needed in daily life."],
        ["Some help needed with shopping and finances.", "Needs some help in daily life."],
        ["Depends on help for dressing and meals.", "Severe loss of independence in daily life."],
    ];
    one_of(rng, &choices[facts.help]).to_owned()
}

fn apoe(facts: &Facts, rng: &mut ChaCha8Rng) -> String {
    let choices: [[&str; 2]; 3] = [
        ["APOE e3/e3.", "No e4 allele of APOE."],
        ["APOE e3/e4.", "One e4 allele of APOE."],
        ["APOE e4/e4.", "Two e4 alleles of APOE."],
    ];
    // Index: at most two alleles.
    one_of(rng, &choices[facts.apoe4 as usize]).to_owned()
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}
