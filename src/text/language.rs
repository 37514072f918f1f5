//! Which language a report is in, as far as its characters and its commonest words say.
//!
//! Reports are short, telegraphic and full of names and Latin terms that all languages share, so nothing is guessed
//! from letter statistics: a language is recognized by its script, or by function words (`der`, `avec`, `zonder`) and
//! everyday words of radiology (`links`, `gauche`) that the language compared with does not have. Where too few of them
//! occur, nothing is said.

use std::collections::BTreeSet;

/// A script that tells the language, or at least that it is none in Latin letters.
type Script = (&'static str, fn(char) -> bool);

/// Japanese before Chinese, whose characters it has too.
const SCRIPTS: &[Script] = &[
    ("Japanese", |c| matches!(c, '\u{3041}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' | '\u{ff66}'..='\u{ff9d}')),
    ("Chinese", |c| matches!(c, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{20000}'..='\u{323af}')),
    ("Korean", |c| matches!(c, '\u{1100}'..='\u{11ff}' | '\u{3131}'..='\u{318e}' | '\u{ac00}'..='\u{d7a3}')),
    ("Cyrillic", |c| matches!(c, '\u{400}'..='\u{52f}')),
    ("Greek", |c| matches!(c, '\u{370}'..='\u{3ff}' | '\u{1f00}'..='\u{1fff}')),
    ("Arabic", |c| matches!(c, '\u{620}'..='\u{6ff}' | '\u{750}'..='\u{77f}' | '\u{fb50}'..='\u{fefc}')),
    ("Hebrew", |c| matches!(c, '\u{5d0}'..='\u{5f2}')),
    ("Devanagari", |c| matches!(c, '\u{900}'..='\u{97f}')),
    ("Thai", |c| matches!(c, '\u{e01}'..='\u{e5b}')),
];

/// Languages in Latin letters: the commonest words of reports in them, in lower case and without diacritics. Words of
/// one letter and abbreviations of radiology (`AD`, `et al`) are left out. English has the words that it shares as
/// well, so that they speak for none of the others.
const LANGUAGES: &[(&str, &str)] = &[
    (
        "English",
        "the of and in to is are was were with without no not for on at by from be been has have had this that which \
         or as an it its there than but within between both left right normal mild mildly moderate severe likely \
         seen history year years old patient patients who since also may more most small large study images \
         impression findings report change changes unchanged increased decreased compared prior other evidence per \
         plus et do will can all any some she he his her their after before during over under if so age brain white \
         matter volume loss consistent suggest suggests suggestive noted shows show showed demonstrates acute \
         chronic stable complaints memory months progressive widening enlarged preserved symmetric bilateral die de \
         novo pro",
    ),
    (
        "German",
        "der die das und ist sind mit ohne im von zu dem des ein eine einer eines einem einen kein keine keiner \
         keinen nicht bei auf aus nach fur als auch sich wird werden wurde wurden zeigt zeigen sowie links rechts \
         beidseits beidseitig beidseitige hinweis unauffallig regelrecht regelrechte leichte leichtgradige massige \
         deutliche altersentsprechend patientin jahre jahren seit beurteilung befund zum zur vom uber unter zwischen \
         noch nur bis durch nachweis linken rechten linke rechte beide beider gering geringe geringgradig \
         geringgradige mittelgradige hochgradige raumforderung blutung gehirn hirn voruntersuchung verglichen \
         gedachtnis gedachtnisstorung den soll konnte alle diese dieser wegen",
    ),
    (
        "French",
        "le la les des du de en un une est sont avec sans pas ne dans sur pour par au aux cette ces il elle qui que \
         sa ses ou chez depuis droite gauche droit anomalie leger legere moderee atrophie hippocampe hippocampes ans \
         lors entre etude signe signes bilaterale normaux normale cerebrale memoire troubles absence taille plus",
    ),
    (
        "Spanish",
        "el la los las de del en un una con sin se es para que su sus como mas entre sobre desde hasta derecho derecha \
         izquierdo izquierda ambos ambas leve leves moderada hallazgos atrofia hipocampo hipocampos paciente anos \
         normales evidencia signos lesiones hemorragia estudio muy ni lo esta estan fue hay no por memoria",
    ),
    (
        "Italian",
        "il lo la gli le di del della dei delle degli con senza non nel nella nei nelle alla ai alle da dal dalla un \
         una che si sono sia piu anche tra destra destro sinistra sinistro bilaterale lieve moderata atrofia \
         ippocampo ippocampi paziente anni segni emorragia quadro reperti esame norma in al memoria ed dell nell \
         come questo questa essere stato ha due lato",
    ),
    (
        "Portuguese",
        "os um uma de da dos das em no na nos nas com sem nao se ao aos por para que mais entre direita direito \
         esquerda esquerdo ambos leve moderada atrofia hipocampo hipocampos paciente anos sinais exame foi sao esta \
         ha evidencia pelo pela ou memoria do as ser nome tem pode quando ate mas seu sua tambem muito apos",
    ),
    (
        "Dutch",
        "de het een van en met zonder geen niet op bij aan uit voor door naar als ook zijn wordt werd worden er dit \
         dat die deze tot over tussen links rechts beiderzijds lichte matige hersenen jaar sinds verslag conclusie \
         bevindingen aanwijzingen wel nog om is in was of geheugenklachten",
    ),
    (
        "Swedish",
        "och att det en ett med utan inte som pa till fran vid hos var inga ingen inget hoger vanster latt mattlig \
         uttalad atrofi normalt aldern finns ses efter samt sedan har mellan patienten blodning de den for kan eller \
         maste vara denna du endast andra alla ska detta kommer an bara over",
    ),
    (
        "Danish or Norwegian",
        "og ikke en et det den der som med uten uden pa til fra ved hos er ingen intet hoyre hojre venstre let lett \
         atrofi tegn funn fund etter efter samt siden mellem mellom pasient patienten blodning aldersvarende de for \
         at kan skal om eller hvis denne vis kun dette har nar alle vaere samme blev bare over under",
    ),
    (
        "Finnish",
        "ja ei ole oikea vasen oikealla vasemmalla molemmin puolin lieva kohtalainen normaali normaalit aivojen \
         atrofia potilas vuotta seka myos kuin jossa ilman viittaavaa loydos loydokset todeta on tai voi vain jos \
         kanssa tama olla etta joka ovat sen sisalla oli yksi koko kaikki",
    ),
    (
        "Polish",
        "na nie jest sa sie bez oraz jak lub przy dla prawej lewej strony obustronnie niewielki niewielkie zanik \
         zaniki mozgu cech normie pacjent lat do to w obu stronach zmian mozna czy tylko aby moze ma tego ze jesli \
         jako przez tym podczas jezeli ale byc ktory ktora",
    ),
    (
        "Czech or Slovak",
        "je jsou na se ve ze bez neni pro pri pravo vlevo vpravo oboustranne mirna atrofie mozku nalez let pacient \
         byl byla podle zaver do to znamky nebo jestli jako byt ma pokud pouze tento nez bude kdyz musi ktere tato \
         muze by jen nebylo ktery oba take sa alebo ako su nie ci ale aj",
    ),
    (
        "Turkish",
        "ve bir bu ile olan olarak icin da sag sol her iki hafif izlenmedi izlenmektedir beyin atrofi hasta yasinda \
         yok var mevcut saptanmadi normaldir veya degil yalnizca eger yeniden ise icinde yeni daha sadece fazla \
         sonra geri olmayan birlikte cok en tum",
    ),
    (
        "Hungarian",
        "az es egy nem van volt hogy jobb bal oldali ketoldali enyhe agyi sorvadas beteg eves nincs nelkul valamint \
         mindket lathato is vagy ha meg csak akkor kell lehet ki altal mint minden utan nincsenek ezen mas elott ez",
    ),
    (
        "Romanian",
        "si la cu fara nu este sunt din pentru prin se un ale dreapta stanga usoara atrofie hipocamp pacient ani \
         semne in de daca sa sau fie poate aceasta trebuie fost care ar cand acest mai au numai doar unui",
    ),
    (
        "Indonesian or Malay",
        "tidak yang untuk dari dalam dan ini dapat dengan atau ada pada hanya adalah harus jika akan sebagai oleh \
         telah kiri kanan",
    ),
    ("Vietnamese", "khong cua duoc mot trong cho cac nay voi khi nhung hai ben nao thay binh thuong va"),
    (
        "Croatian, Serbian or Bosnian",
        "je se na nije ili kao li samo nema da bez ovaj iz za su oba ne koji desno lijevo",
    ),
];

/// Fewest letters, and least share of all letters, by which a script is recognized: Japanese and Chinese reports have
/// many abbreviations in Latin letters.
const LETTERS: (usize, f64) = (8, 0.25);
/// Fewest words, and least share of all words, by which a language is recognized.
const WORDS: (usize, f64) = (3, 0.12);
/// Words of a text that are counted, at most.
const MAX_WORDS: usize = 10_000;
/// How many times as many words as the other language's are needed.
const ADVANTAGE: usize = 3;

/// A language that a text is recognizably in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Recognized {
    /// Its name, or that of its script.
    pub language: &'static str,
    /// Which share of the text's words (of its letters, for a script) says so.
    pub share: f64,
    /// Whether it is recognized by its script.
    pub by_script: bool,
}

/// The language of a text, if it is recognizable among all that are known.
pub(super) fn recognize(text: &str) -> Option<Recognized> {
    by_script(text).or_else(|| {
        let words = Words::of(text);
        let found = words.best()?;
        let clear = |other: &(&str, &str)| other.0 == found.language || words.prefers(found.language, other.0);
        LANGUAGES.iter().all(clear).then_some(found)
    })
}

/// The language of a text, if it is recognizably none of `expected`.
pub(super) fn foreign(text: &str, expected: &BTreeSet<String>) -> Option<Recognized> {
    if expected.is_empty() {
        return None;
    }
    if let Some(found) = by_script(text) {
        return (!expected.contains(found.language)).then_some(found);
    }
    let words = Words::of(text);
    let found = words.best().filter(|found| !expected.contains(found.language))?;
    // The languages of the calibration reports that are known here; scripts have no words.
    expected.iter().all(|other| words.prefers(found.language, other)).then_some(found)
}

fn by_script(text: &str) -> Option<Recognized> {
    let letters = text.chars().filter(|c| c.is_alphabetic()).count();
    let count = |is_of: fn(char) -> bool| text.chars().filter(|c| is_of(*c)).count();
    let mut counts: Vec<(&str, usize)> = SCRIPTS.iter().map(|(name, is_of)| (*name, count(*is_of))).collect();
    // Han characters are Japanese where there is kana between them.
    if let [japanese, chinese, ..] = counts.as_mut_slice()
        && 10 * japanese.1 >= chinese.1
    {
        japanese.1 += std::mem::take(&mut chinese.1);
    }
    let (language, n) = counts.into_iter().max_by_key(|(_, n)| *n)?;
    let share = super::share(n, letters);
    (n >= LETTERS.0 && share >= LETTERS.1).then_some(Recognized { language, share: share.min(1.0), by_script: true })
}

/// The words of a text in Latin letters, folded.
struct Words(Vec<String>);

impl Words {
    fn of(text: &str) -> Self {
        let text: String = text.chars().filter(|c| !matches!(c, '\u{300}'..='\u{36f}')).collect();
        let words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
        Self(words.take(MAX_WORDS).map(fold).collect())
    }

    /// The language that has most of the words, if enough.
    fn best(&self) -> Option<Recognized> {
        let hits = |list: &str| {
            let known: BTreeSet<&str> = list.split_whitespace().collect();
            self.0.iter().filter(|word| known.contains(word.as_str())).count()
        };
        let counted = LANGUAGES.iter().map(|(language, list)| (*language, hits(list)));
        let (language, n) = counted.rev().max_by_key(|(_, n)| *n)?;
        let share = super::share(n, self.0.len());
        (n >= WORDS.0 && share >= WORDS.1).then_some(Recognized { language, share, by_script: false })
    }

    /// Whether the words that only one of the two languages has speak clearly for the first.
    fn prefers(&self, language: &str, other: &str) -> bool {
        let list = |name: &str| {
            let row = LANGUAGES.iter().find(|(known, _)| *known == name);
            row.map(|(_, list)| list.split_whitespace().collect::<BTreeSet<_>>()).unwrap_or_default()
        };
        let (own, others) = (list(language), list(other));
        let only = |of: &BTreeSet<&str>, but: &BTreeSet<&str>| {
            self.0.iter().filter(|word| of.contains(word.as_str()) && !but.contains(word.as_str())).count()
        };
        let (hits, against) = (only(&own, &others), only(&others, &own));
        hits >= WORDS.0 && super::share(hits, self.0.len()) >= WORDS.1 && hits >= ADVANTAGE * against
    }
}

/// A word in lower case and without diacritics, as reports are often typed.
fn fold(word: &str) -> String {
    let plain = |c: char| match c {
        'à'..='å' | 'ā' | 'ă' | 'ą' => 'a',
        'ç' | 'ć' | 'č' => 'c',
        'ď' | 'đ' | 'ð' => 'd',
        'è'..='ë' | 'ē' | 'ę' | 'ě' => 'e',
        'ğ' => 'g',
        'ì'..='ï' | 'ī' | 'ı' => 'i',
        'ł' | 'ľ' => 'l',
        'ñ' | 'ń' | 'ň' => 'n',
        'ò'..='ö' | 'ø' | 'ő' | 'ō' => 'o',
        'ř' => 'r',
        'ś' | 'š' | 'ş' | 'ș' => 's',
        'ť' | 'ţ' | 'ț' => 't',
        'ù'..='ü' | 'ű' | 'ů' | 'ū' => 'u',
        'ý' | 'ÿ' => 'y',
        'ź' | 'ż' | 'ž' => 'z',
        'ơ' => 'o',
        'ư' => 'u',
        // Vietnamese vowels with two marks.
        '\u{1ea0}'..='\u{1eb7}' => 'a',
        '\u{1eb8}'..='\u{1ec7}' => 'e',
        '\u{1ec8}'..='\u{1ecb}' => 'i',
        '\u{1ecc}'..='\u{1ee3}' => 'o',
        '\u{1ee4}'..='\u{1ef1}' => 'u',
        '\u{1ef2}'..='\u{1ef9}' => 'y',
        c => c,
    };
    // `İ` becomes two characters in lower case, the second of which is a mark.
    word.chars().flat_map(char::to_lowercase).filter(|c| *c != '\u{307}').map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn english() -> BTreeSet<String> {
        BTreeSet::from(["English".to_owned()])
    }

    #[test]
    fn lists_are_folded_words_of_two_letters_or_more() {
        for (language, list) in LANGUAGES {
            for word in list.split_whitespace() {
                let good = word.len() > 1 || language == &"Polish" && word == "w";
                assert!(good && word.chars().all(|c| c.is_ascii_lowercase()), "{language}: {word}");
            }
        }
    }

    #[test]
    fn decomposed_and_missing_diacritics_are_the_same() {
        for text in ["für über Gedächtnis", "fu\u{308}r u\u{308}ber Geda\u{308}chtnis", "FUR UBER GEDACHTNIS"] {
            let found = foreign(text, &english()).unwrap();
            assert_eq!((found.language, found.share), ("German", 1.0), "{text}");
        }
    }

    #[test]
    fn without_evidence_nothing_is_said() {
        for text in
            ["", "MTA 2, Fazekas 1", "Dr. van der Berg", "Kein Tumor", "α β γ", "Smith, Jones, Müller, de la Cruz"]
        {
            assert_eq!(foreign(text, &english()), None, "{text}");
        }
        let german = "Kein Hinweis auf eine Blutung. Hippocampi beidseits regelrecht.";
        assert_eq!(foreign(german, &BTreeSet::new()), None);
        assert_eq!(foreign(german, &BTreeSet::from(["English".into(), "German".into()])), None);
        assert_eq!(foreign(german, &english()).unwrap().language, "German");
        assert_eq!(
            foreign("No infarct. The hippocampi are normal on both sides.", &BTreeSet::from(["Chinese".into()]))
                .unwrap()
                .language,
            "English"
        );
    }
}
