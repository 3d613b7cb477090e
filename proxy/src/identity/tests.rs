//! The keeper with a signer of its own and time that the test tells.

use std::{
    fs,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

use super::*;
use crate::telemetry::Peer;

const DAY: Duration = Duration::from_secs(24 * 3600);
const ME: &str = "spiffe://cluster.local/ns/shop/sa/catalog";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }
}

/// What the fake control plane does next.
struct Plan {
    authority: Authority,
    fail: bool,
    identity: String,
    valid_until: SystemTime,
    calls: Vec<String>,
    append_root: bool,
}

#[derive(Clone)]
struct Fake(Arc<Mutex<Plan>>);

impl Signer for Fake {
    async fn sign(&self, request: SignRequest<'_>) -> Result<Vec<String>, SignError> {
        let mut plan = self.0.lock().unwrap();
        plan.calls.push(request.token.to_owned());
        if plan.fail {
            return Err(SignError::Unreachable("it is down".into()));
        }
        let mut csr = CertificateSigningRequestParams::from_pem(request.csr_pem).unwrap();
        csr.params.subject_alt_names = vec![SanType::URI(plan.identity.as_str().try_into().unwrap())];
        csr.params.not_before = OffsetDateTime::from(SystemTime::now() - Duration::from_secs(3600));
        csr.params.not_after = OffsetDateTime::from(plan.valid_until);
        csr.params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        csr.params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let mut chain = vec![csr.signed_by(&plan.authority.issuer).unwrap().pem()];
        if plan.append_root {
            chain.push(plan.authority.pem.clone());
        }
        Ok(chain)
    }
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("weir-identity-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct World {
    folder: Folder,
    plan: Arc<Mutex<Plan>>,
    keeper: Keeper<Fake>,
    now: Now,
}

impl World {
    fn new() -> Self {
        let folder = Folder::new();
        let now = Now { monotonic: Instant::now(), wall: SystemTime::now() };
        let authority = Authority::new("one");
        folder.write("root-cert.pem", &authority.pem);
        folder.write("token", "token-1\n");
        let plan = Arc::new(Mutex::new(Plan {
            authority,
            fail: false,
            identity: ME.into(),
            valid_until: now.wall + DAY,
            calls: Vec::new(),
            append_root: true,
        }));
        let mut config = Config::new(ME.parse().unwrap(), folder.0.join("token"), folder.0.join("root-cert.pem"));
        config.seed = Some(1);
        let keeper = Keeper {
            config,
            tls: MeshTls::new("cluster.local".parse().unwrap()),
            signer: Fake(plan.clone()),
            readiness: Readiness::new([readiness::CERTIFICATE]),
            registry: Registry::new(Peer::unknown(), "test"),
            roots: Roots::default(),
            issued: None,
            backoff: Backoff::default(),
            jitter: Jitter::seeded(1),
            next: now.monotonic,
            last_error: None,
        };
        Self { folder, plan, keeper, now }
    }

    fn pass(&mut self, time: Duration) {
        self.now.monotonic += time;
        self.now.wall += time;
    }

    async fn step(&mut self) {
        self.keeper.step(self.now).await;
    }

    /// Lets time pass until the next attempt and makes it; returns how long that was.
    async fn until_next(&mut self) -> Duration {
        let wait = self.keeper.next - self.now.monotonic;
        self.pass(wait);
        self.step().await;
        wait
    }

    fn plan(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan.lock().unwrap());
    }

    fn calls(&self) -> usize {
        self.plan.lock().unwrap().calls.len()
    }

    fn generation(&self) -> u64 {
        self.keeper.tls.generation()
    }

    fn reasons(&self) -> String {
        self.keeper.readiness.reasons()
    }
}

#[tokio::test]
async fn gets_a_certificate_and_renews_at_half_life() {
    let mut world = World::new();
    assert!(world.keeper.tls.identity().is_none());
    world.step().await;
    assert_eq!(world.keeper.tls.identity(), Some(ME.parse().unwrap()));
    assert_eq!(world.reasons(), "");
    let metrics = &world.keeper.registry.clone().proxy;
    let expiry = world.plan.lock().unwrap().valid_until.duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(metrics.certificate_expiry.get(), i64::try_from(expiry).unwrap());
    assert!(metrics.root_expiry.get() > metrics.certificate_expiry.get());

    // Nothing to do in between.
    world.pass(Duration::from_secs(3600));
    world.step().await;
    assert_eq!(world.calls(), 1);

    world.plan.lock().unwrap().valid_until = world.now.wall + 2 * DAY;
    world.folder.write("token", "token-2");
    let waited = world.until_next().await + Duration::from_secs(3600);
    assert!((DAY.mul_f64(0.45)..=DAY.mul_f64(0.55)).contains(&waited), "{waited:?}");
    assert_eq!(world.plan.lock().unwrap().calls, ["token-1", "token-2"], "the token is read for each call");
    assert_eq!(world.generation(), 2);
    assert_eq!(metrics.certificate_renewals.get(), 2);
}

#[tokio::test]
async fn keeps_what_is_valid_while_renewals_fail() {
    let mut world = World::new();
    world.step().await;
    world.plan.lock().unwrap().fail = true;
    world.until_next().await;
    let mut waits = Vec::new();
    while waits.len() < 8 {
        waits.push(world.until_next().await.as_secs_f64());
    }
    for (wait, expected) in waits.iter().zip([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]) {
        assert!((expected..=expected * 1.25).contains(wait), "{waits:?}");
    }
    assert_eq!(world.generation(), 1);
    assert_eq!(world.reasons(), "", "still valid, so still ready");
    assert_eq!(world.keeper.registry.proxy.certificate_renew_failures.with(["unreachable"]).get(), 9);

    // Shortly before expiry an attempt is made no later than at expiry.
    let left = Duration::from_secs(10);
    let expiry = world.keeper.issued.as_ref().unwrap().expiry;
    world.pass(expiry.duration_since(world.now.wall).unwrap() - left);
    world.step().await;
    assert_eq!(world.keeper.next - world.now.monotonic, left);
    world.until_next().await;
    assert_eq!(
        world.reasons(),
        "certificate: it has expired, because the control plane can not be reached: it is down\n"
    );

    let until = world.now.wall + DAY;
    world.plan(|plan| {
        plan.fail = false;
        plan.valid_until = until;
    });
    world.until_next().await;
    assert_eq!(world.reasons(), "");
    assert_eq!(world.generation(), 2);
}

#[tokio::test]
async fn says_what_is_missing_at_the_start() {
    let mut world = World::new();
    fs::remove_file(world.folder.0.join("root-cert.pem")).unwrap();
    world.step().await;
    assert!(world.reasons().contains("root-cert.pem can not be read"), "{}", world.reasons());
    assert_eq!(world.calls(), 0, "without roots nobody is called");

    world.folder.write("root-cert.pem", "not PEM");
    world.until_next().await;
    assert!(world.reasons().contains("root-cert.pem has no certificate"), "{}", world.reasons());

    let pem = world.plan.lock().unwrap().authority.pem.clone();
    world.folder.write("root-cert.pem", &pem);
    fs::remove_file(world.folder.0.join("token")).unwrap();
    world.until_next().await;
    assert!(world.reasons().contains("token can not be read"), "{}", world.reasons());
    for bad in ["", " \n", "a b", "a\r\nx: y", "\u{e9}"] {
        world.folder.write("token", bad);
        world.until_next().await;
        assert!(world.reasons().contains("token is"), "{bad:?}: {}", world.reasons());
    }
    world.folder.write("token", &"x".repeat(20_000));
    world.until_next().await;
    assert!(world.reasons().contains("token is too long"), "{}", world.reasons());
    assert_eq!(world.calls(), 0);

    world.folder.write("token", "good");
    world.until_next().await;
    assert_eq!(world.reasons(), "");
}

#[tokio::test]
async fn refuses_a_certificate_for_somebody_else() {
    let mut world = World::new();
    world.plan.lock().unwrap().identity = "spiffe://cluster.local/ns/shop/sa/other".into();
    world.step().await;
    assert!(world.keeper.tls.identity().is_none());
    assert!(world.reasons().contains("signed for spiffe://cluster.local/ns/shop/sa/other"), "{}", world.reasons());

    world.plan.lock().unwrap().identity = "spiffe://elsewhere/ns/shop/sa/catalog".into();
    world.until_next().await;
    assert!(world.keeper.tls.identity().is_none());

    world.plan(|plan| {
        plan.identity = ME.into();
        plan.authority = Authority::new("impostor");
        plan.append_root = false;
    });
    world.until_next().await;
    assert!(world.keeper.tls.identity().is_none());
    assert!(world.reasons().contains("would be refused"), "{}", world.reasons());
}

#[tokio::test]
async fn follows_the_file_of_roots() {
    let mut world = World::new();
    world.step().await;
    assert_eq!(world.keeper.tls.facts().unwrap().roots.len(), 1);

    // A second root beside the first: in force without a new certificate.
    let second = Authority::new("two");
    let both = format!("{}{}", world.plan.lock().unwrap().authority.pem, second.pem);
    world.folder.write("root-cert.pem", &both);
    world.pass(POLL);
    world.step().await;
    assert_eq!((world.calls(), world.generation()), (1, 2));
    assert_eq!(world.keeper.tls.facts().unwrap().roots.len(), 2);

    // A file that breaks changes nothing.
    world.folder.write("root-cert.pem", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n");
    world.pass(POLL);
    world.step().await;
    assert_eq!((world.generation(), world.reasons().as_str()), (2, ""));

    // The authority moves on to the second root, and the file drops the first: another certificate at once.
    let second_pem = second.pem.clone();
    world.plan(|plan| plan.authority = second);
    world.folder.write("root-cert.pem", &second_pem);
    world.pass(POLL);
    world.step().await;
    assert_eq!((world.calls(), world.generation()), (2, 3));
    let roots = world.keeper.tls.facts().unwrap().roots.clone();
    assert_eq!(roots.len(), 1);
    assert!(roots[0].subject.contains("two"), "{roots:?}");
}

#[tokio::test]
async fn new_roots_arrive_with_the_chain() {
    let mut world = World::new();
    world.step().await;
    let old = world.plan.lock().unwrap().authority.pem.clone();
    world.plan.lock().unwrap().authority = Authority::new("two");
    world.until_next().await;
    assert_eq!(world.generation(), 2);
    let roots = world.keeper.tls.facts().unwrap().roots.clone();
    assert_eq!(roots.len(), 2, "the file's root {old} and the one of the chain: {roots:?}");
}

#[tokio::test]
async fn a_wall_clock_that_jumps_makes_a_renewal_due() {
    let mut world = World::new();
    world.step().await;
    world.now.wall += DAY.mul_f64(0.6);
    world.plan.lock().unwrap().valid_until = world.now.wall + DAY;
    world.now.monotonic += POLL;
    world.step().await;
    assert_eq!(world.calls(), 2);
    // Back again: nothing goes wild.
    world.now.wall -= DAY;
    world.now.monotonic += POLL;
    world.step().await;
    world.now.monotonic += POLL;
    world.step().await;
    assert_eq!(world.calls(), 2);
}

#[tokio::test]
async fn a_clock_that_is_behind_from_the_beginning_does_not_put_renewals_off() {
    let mut world = World::new();
    world.now.wall -= 30 * DAY;
    world.step().await;
    assert_eq!(world.calls(), 1);
    // It stays behind: by the other clock the next certificate is asked for at about half of this one's life.
    let next = world.keeper.next.duration_since(world.now.monotonic);
    assert!(next < DAY.mul_f64(0.6), "{next:?}");
    world.until_next().await;
    assert_eq!(world.calls(), 2);
    // It is set right: at once again, and once only.
    world.now.wall += 30 * DAY;
    world.plan.lock().unwrap().valid_until = world.now.wall + DAY;
    for _ in 0..3 {
        world.now.monotonic += POLL;
        world.step().await;
    }
    assert_eq!(world.calls(), 3);
    assert_eq!(world.reasons(), "");
}

#[tokio::test]
async fn a_clock_that_jumps_while_nobody_signs_does_not_cut_the_pauses_short() {
    let mut world = World::new();
    world.step().await;
    world.plan(|plan| plan.fail = true);
    for jump in [0, 1, 0, 2, 0] {
        world.now.wall += jump * DAY;
        world.now.monotonic += POLL;
        world.step().await;
    }
    let calls = world.calls();
    assert!(calls < 6, "{calls} calls");
    // Years ahead is past the certificate's end: not ready, and said why; back again it serves on.
    world.now.wall += 3650 * DAY;
    world.step().await;
    assert!(world.reasons().contains("expired"), "{}", world.reasons());
    world.now.wall -= 3653 * DAY;
    world.step().await;
    assert_eq!(world.reasons(), "");
}

#[test]
fn answers_that_are_no_chain() {
    let authority = Authority::new("one");
    for bad in [
        vec![],
        vec!["".to_owned()],
        vec!["junk".to_owned()],
        vec![authority.pem.clone()],
        vec!["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned()],
        vec![authority.pem.repeat(20)],
    ] {
        assert!(Request::new().unwrap().fulfilled(&bad).is_err(), "{bad:?}");
    }
}

#[test]
fn the_request_names_nobody() {
    let request = Request::new().unwrap();
    let csr = CertificateSigningRequestParams::from_pem(&request.csr_pem).unwrap();
    assert!(csr.params.subject_alt_names.is_empty());
    assert!(csr.params.distinguished_name.iter().next().is_none());
}
