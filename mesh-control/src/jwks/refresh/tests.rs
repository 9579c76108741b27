//! Fetches that end as a script says, on a clock that stands.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use mesh_testkit::clock::pass;
use parking_lot::Mutex;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const REFRESH: Duration = Duration::from_secs(20 * 60);

/// A script of answers, and when each source was asked.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Result<String, FetchError>>>>,
    asked: Arc<Mutex<Vec<(Instant, KeySource)>>>,
}

impl Script {
    fn answer(&self, answer: Result<&str, &str>) {
        let failed = |why: &str| FetchError::Broken("issuer".to_owned(), why.to_owned());
        self.answers.lock().push_back(answer.map(str::to_owned).map_err(failed));
    }

    /// What is not scripted hangs.
    fn ask(&self) -> Ask {
        let script = self.clone();
        Arc::new(move |source, _| {
            script.asked.lock().push((Instant::now(), source));
            let answer = script.answers.lock().pop_front();
            Box::pin(async move {
                match answer {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            })
        })
    }

    fn asked(&self) -> usize {
        self.asked.lock().len()
    }
}

fn model(urls: &[&str]) -> Model {
    model_of(&[("default", urls)])
}

/// Sources that namespaces name, with more time than there is.
fn model_of(namespaces: &[(&str, &[&str])]) -> Model {
    let object = |(namespace, urls): &(&str, &[&str])| {
        let rules = urls.iter().map(|url| format!("{{issuer: i, jwksUri: '{url}', timeout: 1m}}"));
        format!(
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
             metadata: {{name: a, namespace: {namespace}}}\nspec: {{jwtRules: [{}]}}\n",
            rules.collect::<Vec<_>>().join(", ")
        )
    };
    let text = namespaces.iter().map(object).collect::<Vec<_>>().join("---\n");
    let model = Model::from_texts([("a.yaml", &*text)]);
    // That it is more than there is, is said.
    assert!(model.findings().iter().all(|f| f.field.ends_with(".timeout")), "{:?}", model.findings());
    model
}

const URL: &str = "https://issuer.test/keys";

fn source(url: &str) -> KeySource {
    KeySource::Uri(url.to_owned())
}

/// A wall clock that goes with tokio's.
fn clock() -> Clock {
    let begin = Instant::now();
    Clock::new(move || UNIX_EPOCH + Duration::from_secs(1_000_000) + begin.elapsed())
}

fn start(model: Watched<Model>, script: &Script, state: Option<StateDir>) -> (Refresh, Watched<Keys>) {
    let refresh = Refresh::new(model, script.ask(), FetchOptions::default(), clock(), state);
    let keys = refresh.keys();
    (refresh, keys)
}

/// The document and the failure of a source.
fn known(keys: &Watched<Keys>, url: &str) -> Option<(Option<String>, Option<String>)> {
    let known = keys.load_full().get(&source(url)).cloned()?;
    Some((known.document.map(|text| text.to_string()), known.failure))
}

/// Runs it beside a test.
async fn beside(refresh: Refresh, test: impl Future<Output = ()>) {
    tokio::select! {
        () = refresh.run() => unreachable!("it runs for ever"),
        () = test => {}
    }
}

fn failed(why: &str) -> Option<String> {
    Some(format!("issuer broke off: {why}"))
}

#[tokio::test(start_paused = true)]
async fn keys_are_fetched_at_once_and_every_so_often() {
    let script = Script::default();
    let (refresh, keys) = start(Watched::fixed(model(&[URL])), &script, None);
    assert_eq!(known(&keys, URL), None, "not asked yet");
    script.answer(Ok("one"));
    script.answer(Ok("two"));
    beside(refresh, async {
        pass(SECOND).await;
        assert_eq!(known(&keys, URL), Some((Some("one".into()), None)));
        pass(REFRESH - 2 * SECOND).await;
        assert_eq!(script.asked(), 1);
        pass(2 * SECOND).await;
        assert_eq!(known(&keys, URL), Some((Some("two".into()), None)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn s49_the_last_good_keys_hold_for_a_time_and_the_failure_is_told() {
    let script = Script::default();
    let (refresh, keys) = start(Watched::fixed(model(&[URL])), &script, None);
    script.answer(Ok("one"));
    for _ in 0..1_000 {
        script.answer(Err("reset"));
    }
    beside(refresh, async {
        pass(REFRESH + 2 * SECOND).await;
        assert_eq!(known(&keys, URL), Some((Some("one".into()), failed("reset"))));
        pass(Duration::from_secs(23 * 3600)).await;
        assert_eq!(known(&keys, URL), Some((Some("one".into()), failed("reset"))), "last good");
        pass(Duration::from_secs(3600)).await;
        assert_eq!(known(&keys, URL), Some((None, failed("reset"))), "too old");
        script.answers.lock().clear();
        script.answer(Ok("two"));
        pass(AGAIN.max).await;
        assert_eq!(known(&keys, URL), Some((Some("two".into()), None)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn s49_who_takes_all_keys_back_is_believed_at_once_and_through_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let open = || Some(StateDir::open(state.path()).unwrap());
    let one = set('A');
    for (taken_back, left) in [(true, None), (false, Some(one.clone()))] {
        let script = Script::default();
        let (refresh, keys) = start(Watched::fixed(model(&[URL])), &script, open());
        script.answer(Ok(&one));
        script.answers.lock().push_back(Err(match taken_back {
            true => FetchError::NoKeys(URL.to_owned()),
            // The control: what is no key set says nothing.
            false => FetchError::Content(URL.to_owned(), "no JSON".to_owned()),
        }));
        beside(refresh, async {
            pass(SECOND).await;
            assert_eq!(known(&keys, URL), Some((Some(one.clone()), None)));
            pass(REFRESH).await;
            let (document, failure) = known(&keys, URL).unwrap();
            assert!(failure.is_some());
            assert_eq!(document, left);
        })
        .await;
        let (_, keys) = start(Watched::fixed(model(&[URL])), &Script::default(), open());
        assert_eq!(known(&keys, URL).and_then(|(document, _)| document), left);
    }
}

#[tokio::test(start_paused = true)]
async fn s49_failures_are_tried_again_with_growing_waits() {
    let script = Script::default();
    let (refresh, keys) = start(Watched::fixed(model(&[URL])), &script, None);
    (0..12).for_each(|_| script.answer(Err("reset")));
    let begin = Instant::now();
    beside(refresh, async {
        pass(Duration::from_secs(1_200)).await;
        assert_eq!(known(&keys, URL), Some((None, failed("reset"))));
    })
    .await;
    let asked: Vec<u64> = script.asked.lock().iter().map(|(at, _)| (*at - begin).as_secs()).collect();
    assert_eq!(asked, [0, 1, 3, 7, 15, 31, 63, 127, 255, 511, 811, 1_111]);
}

#[tokio::test(start_paused = true)]
async fn a_source_comes_and_goes_with_the_manifests_and_keeps_its_keys_meanwhile() {
    const OTHER: &str = "https://other.test/keys";
    let script = Script::default();
    let (publisher, models) = Watched::channel(model(&[URL]));
    let (refresh, keys) = start(models, &script, None);
    script.answer(Ok("one"));
    beside(refresh, async {
        pass(SECOND).await;
        script.answer(Ok("other"));
        publisher.publish(model(&[OTHER, URL]));
        pass(SECOND).await;
        assert_eq!(known(&keys, OTHER), Some((Some("other".into()), None)));
        assert_eq!(known(&keys, URL), Some((Some("one".into()), None)));
        assert_eq!(script.asked(), 2, "what is known is not asked anew");
        publisher.publish(model(&[OTHER]));
        pass(SECOND).await;
        assert_eq!(known(&keys, URL), None);
        publisher.publish(Model::default());
        pass(2 * REFRESH).await;
        assert_eq!((keys.load_full().len(), script.asked()), (0, 2), "nobody wants any");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn sources_that_hang_do_not_pile_up() {
    let urls: Vec<String> = (0..40).map(|i| format!("https://issuer.test/{i}")).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let script = Script::default();
    let (refresh, keys) = start(Watched::fixed(model(&urls)), &script, None);
    (0..5).for_each(|_| script.answer(Ok("one")));
    beside(refresh, async {
        pass(SECOND).await;
        assert_eq!(script.asked(), 5 + MOST_OF_ONE);
        assert_eq!(keys.load_full().len(), 5);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn sources_of_one_namespace_that_hang_do_not_stop_those_of_another() {
    let hanging: Vec<String> = (0..40).map(|i| format!("https://a.test/{i}")).collect();
    let hanging: Vec<&str> = hanging.iter().map(String::as_str).collect();
    // The last in every order but that of time.
    let model = model_of(&[("a", &hanging[..]), ("z", &[URL][..])]);
    let ask: Ask = Arc::new(|name, _| {
        Box::pin(async move { if name == source(URL) { Ok("one".to_owned()) } else { std::future::pending().await } })
    });
    let refresh = Refresh::new(Watched::fixed(model), ask, FetchOptions::default(), clock(), None);
    let keys = refresh.keys();
    beside(refresh, async {
        pass(SECOND).await;
        assert_eq!(known(&keys, URL), Some((Some("one".into()), None)));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_longest_is_asked_next_and_no_fetch_takes_longer_than_it_may() {
    let urls: Vec<String> = (0..40).map(|i| format!("https://issuer.test/{i}")).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let asked: Arc<Mutex<Vec<(KeySource, Duration)>>> = Arc::default();
    let noted = asked.clone();
    let ask: Ask = Arc::new(move |name, limit| {
        noted.lock().push((name.clone(), limit));
        Box::pin(async move {
            sleep_until(Instant::now() + limit).await;
            Err(FetchError::Timeout(name.url()))
        })
    });
    let refresh = Refresh::new(Watched::fixed(model(&urls)), ask, FetchOptions::default(), clock(), None);
    let rounds = u32::try_from(urls.len() / MOST_OF_ONE).unwrap();
    beside(refresh, pass(LONGEST * rounds + SECOND)).await;
    let asked = asked.lock();
    assert!(asked.len() > urls.len() && asked.iter().all(|(_, limit)| *limit == LONGEST), "{asked:?}");
    let first: BTreeSet<&KeySource> = asked.iter().take(urls.len()).map(|(name, _)| name).collect();
    assert_eq!(first.len(), urls.len(), "nobody is asked again before everybody was asked: {asked:?}");
}

/// A set that [`PublicKeys::read`] takes; what comes from disk is read again.
#[tokio::test(start_paused = true)]
async fn s49_s90_of_one_namespace_a_hundred_sources_are_asked_and_those_of_another_all_the_same() {
    let urls: Vec<String> = (0..=MOST_NAMED).map(|n| format!("https://issuer-{n:03}.test/keys")).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let (last, rest) = urls.split_last().unwrap();
    let asked = async |many: &[&str]| {
        let script = Script::default();
        urls.iter().chain([&URL]).for_each(|_| script.answer(Ok("one")));
        let (refresh, keys) = start(Watched::fixed(model_of(&[("many", many), ("z", &[URL])])), &script, None);
        beside(refresh, pass(SECOND)).await;
        assert_eq!(known(&keys, URL), Some((Some("one".into()), None)));
        (script.asked(), known(&keys, last))
    };
    let (asks, of_last) = asked(&urls).await;
    assert_eq!(asks, MOST_NAMED + 1);
    let (document, failure) = of_last.unwrap();
    assert!(document.is_none() && failure.as_ref().unwrap().contains("over 100"), "{failure:?}");
    // The control: without one of the others it is asked.
    assert_eq!(asked(&[&rest[1..], &[*last]].concat()).await, (MOST_NAMED + 1, Some((Some("one".into()), None))));
}

#[tokio::test(start_paused = true)]
async fn what_is_told_of_a_failure_is_short_however_much_an_issuer_said() {
    for (said, kept) in [("é".repeat(1 << 20), MOST_OF_FAILURE), ("reset".to_owned(), 23)] {
        let script = Script::default();
        script.answer(Err(&said));
        let (refresh, keys) = start(Watched::fixed(model(&[URL])), &script, None);
        beside(refresh, pass(SECOND / 2)).await;
        let (_, failure) = known(&keys, URL).unwrap();
        let failure = failure.unwrap();
        assert!(failure.len() == kept && failure.starts_with("issuer broke off: "), "{}", failure.len());
    }
}

fn set(x: char) -> String {
    let x: String = std::iter::repeat_n(x, 43).collect();
    PublicKeys::read(&format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}]}}"#)).unwrap().text
}

#[tokio::test(start_paused = true)]
async fn s49_a_restart_begins_with_the_keys_that_were_good_unless_they_are_too_old() {
    let directory = tempfile::tempdir().unwrap();
    let state = || Some(StateDir::open(directory.path()).unwrap());
    let (script, good) = (Script::default(), set('A'));
    let models = || Watched::fixed(model(&[URL]));
    let wall = clock();
    let begin = |script: &Script, clock: Clock| {
        let refresh = Refresh::new(models(), script.ask(), FetchOptions::default(), clock, state());
        let keys = refresh.keys();
        (refresh, keys)
    };
    let (refresh, _) = begin(&script, wall.clone());
    script.answer(Ok(&good));
    beside(refresh, pass(SECOND)).await;

    let down = Script::default();
    let (refresh, keys) = begin(&down, wall.clone());
    assert_eq!(known(&keys, URL), Some((Some(good.clone()), None)), "at once");
    down.answer(Err("reset"));
    beside(refresh, async {
        pass(Duration::from_millis(500)).await;
        assert_eq!(known(&keys, URL), Some((Some(good.clone()), failed("reset"))));
    })
    .await;

    let later = Clock::new(|| UNIX_EPOCH + Duration::from_secs(1_000_000 + 86_500));
    let (_, keys) = begin(&Script::default(), later);
    assert_eq!(known(&keys, URL), None, "a day has passed");

    for broken in ["", "{", r#"[{"source":{"uri":"https://issuer.test/keys"},"document":"{}","fetched":1000000}]"#] {
        std::fs::write(directory.path().join(FILE), broken).unwrap();
        let (_, keys) = begin(&Script::default(), wall.clone());
        assert_eq!(known(&keys, URL), None, "{broken}");
    }
}

#[tokio::test(start_paused = true)]
async fn s49_kept_keys_that_come_from_the_future_are_too_old() {
    let directory = tempfile::tempdir().unwrap();
    for (fetched, kept) in [(1_000_000, true), (1_003_600, false)] {
        let saved = [Saved { source: source(URL), document: set('A'), fetched }];
        std::fs::write(directory.path().join(FILE), serde_json::to_vec(&saved).unwrap()).unwrap();
        let state = StateDir::open(directory.path()).unwrap();
        let (_, keys) = start(Watched::fixed(model(&[URL])), &Script::default(), Some(state));
        assert_eq!(known(&keys, URL).is_some(), kept, "{fetched}");
    }
}
